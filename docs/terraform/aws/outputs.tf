output "key_arn" {
  description = "For the field key_arn of POST /v1/keys/bindings."
  value       = aws_kms_key.confide.arn
}

output "role_arn" {
  description = "For the field role_arn of POST /v1/keys/bindings."
  value       = aws_iam_role.confide.arn
}

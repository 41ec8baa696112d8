variable "confide_role_arn" {
  description = "The role of the Confide cell, as the binding gives it."
  type        = string

  validation {
    condition     = can(regex("^arn:aws[a-z-]*:iam::[0-9]{12}:role/[A-Za-z0-9+=,.@_/-]{1,512}$", var.confide_role_arn))
    error_message = "Give the ARN of Confide's role as the binding shows it."
  }
}

variable "external_id" {
  description = "The external id of the binding. Confide generates it; apply once without it, make the binding with the outputs, then apply again with its external id."
  type        = string
  default     = "confide-ffffffffffffffffffffffffffffffff" # no binding has this one: until then nobody gets in

  validation {
    condition     = can(regex("^confide-[0-9a-f]{32}$", var.external_id))
    error_message = "Give the external id as the binding shows it."
  }
}

variable "tenant_id" {
  description = "The id of your Confide tenant: Confide may use the key under its encryption context only."
  type        = string

  validation {
    condition     = can(regex("^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", var.tenant_id))
    error_message = "Give the tenant's id, a UUID in lower case."
  }
}

variable "role_name" {
  description = "The name of the role that Confide assumes."
  type        = string
  default     = "confide-kms"
}

# A KMS key of your own for Confide, and the role through which Confide may use it.
#
# Confide assumes the role from its own account with an external id that only your binding has, and may then wrap and
# unwrap under your tenant's encryption context, and nothing else. Disable the key to switch your context dark.

terraform {
  required_version = ">= 1.5"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.0"
    }
  }
}

data "aws_caller_identity" "this" {}

data "aws_partition" "this" {}

locals {
  role_arn = "arn:${data.aws_partition.this.partition}:iam::${data.aws_caller_identity.this.account_id}:role/${var.role_name}"
}

resource "aws_iam_role" "confide" {
  name = var.role_name
  assume_role_policy = templatefile("${path.module}/trust-policy.json.tftpl", {
    confide_role_arn = var.confide_role_arn
    external_id      = var.external_id
  })
}

resource "aws_kms_key" "confide" {
  description             = "Top key of Confide tenant ${var.tenant_id}"
  enable_key_rotation     = true
  deletion_window_in_days = 30
  policy = templatefile("${path.module}/key-policy.json.tftpl", {
    partition   = data.aws_partition.this.partition
    key_account = data.aws_caller_identity.this.account_id
    role_arn    = local.role_arn
    tenant_id   = var.tenant_id
  })

  # A key policy may only name a role that exists.
  depends_on = [aws_iam_role.confide]

  lifecycle {
    prevent_destroy = true
  }
}

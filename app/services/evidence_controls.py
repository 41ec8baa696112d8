"""Which queries speak to which control, and what software can't evidence, said as such."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Control:
    """``checks``: names in app/store/evidence.py. ``beyond``: what of the control no query here can show."""

    title: str
    checks: tuple[str, ...] = ()
    beyond: str = ""


CONTROLS: Final[dict[str, Control]] = {
    # SOC 2, trust services criteria 2017 (revised points of focus 2022)
    "cc6.1": Control(
        "Logical access security over protected information", ("sealed", "container-keys", "exact-scopes")
    ),
    "cc6.2": Control("Registration and authorisation of users", ("exact-scopes",), "Who a person behind a key is."),
    "cc6.3": Control("Role-based access and least privilege", ("exact-scopes", "no-operator-access", "revoked-keys")),
    "cc6.4": Control("Physical access", (), "Physical access is the data centre operator's to evidence."),
    "cc6.5": Control("Disposal of data", ("erasures", "erased-stays-erased", "retention"), "Disposal of hardware."),
    "cc6.6": Control(
        "Protection from outside the boundary", ("revoked-keys", "denials-logged"), "Networks, firewalls."
    ),
    "cc6.7": Control("Transmission, movement and removal", ("transfers", "purposes"), "TLS in front of the service."),
    "cc6.8": Control(
        "Unauthorised or malicious software", (), "Endpoint and build protection are outside the service."
    ),
    "cc7.1": Control("Detection of changes and vulnerabilities", ("tampering",), "Vulnerability scans."),
    "cc7.2": Control("Monitoring for anomalies", ("log-sealed", "log-without-gaps", "denials-logged", "tampering")),
    "cc7.3": Control("Evaluation of security events", ("incidents-told",), "People's judgement of an event."),
    "cc7.4": Control("Response to incidents", ("incidents-told",), "What was done outside the service."),
    "cc7.5": Control("Recovery from incidents", ("erased-stays-erased",), "Exercises of recovery."),
    "c1.1": Control("Confidential information is identified and kept", ("sealed", "key-use-logged", "purposes")),
    "c1.2": Control("Confidential information is disposed of", ("retention", "erasures", "erased-stays-erased")),
    "p4": Control("Use, retention and disposal of personal information", ("purposes", "retention", "erasures")),
    "p5": Control("Access by data subjects", ("access-requests",), "That the answer reached the right person."),
    "p6": Control("Disclosure and notification", ("transfers", "incidents-told")),
    "p7": Control("Quality of personal information", (), "Whether what a client stored is right, no store can tell."),
    "p8": Control("Monitoring and enforcement", ("log-sealed", "denials-logged"), "Handling of complaints."),
    # GDPR, by article
    "gdpr-5": Control(
        "Principles: purpose, minimisation, storage limits, integrity", ("purposes", "retention", "sealed")
    ),
    "gdpr-15": Control("Right of access", ("access-requests",), "That the answer reached the right person."),
    "gdpr-17": Control("Right to erasure", ("erasures", "erased-stays-erased", "holds-explained")),
    "gdpr-20": Control("Right to data portability", ("access-requests",)),
    "gdpr-25": Control("Data protection by design and by default", ("sealed", "region", "retention", "exact-scopes")),
    "gdpr-28": Control("Processor", ("terms", "no-operator-access"), "The contract itself, audits of sub-processors."),
    "gdpr-30": Control("Records of processing", ("key-use-logged", "log-without-gaps")),
    "gdpr-32": Control("Security of processing", ("sealed", "container-keys", "tampering", "log-sealed")),
    "gdpr-33": Control("Notification of a breach", ("incidents-told",), "The authority's receipt."),
    "gdpr-44": Control("Transfers", ("region", "transfers")),
    # A procurement checklist for dialogue APIs, in nine questions
    "q-training": Control("Is our data used to train models?", ("purposes",)),
    "q-encryption": Control("Which encryption standard protects it?", ("sealed", "container-keys")),
    "q-cmek": Control("Can we hold the key?", ("customer-key",)),
    "q-residency": Control("Where is it?", ("region", "transfers")),
    "q-dpa": Control("Is there a DPA, and who are the sub-processors?", ("terms",), "Sub-processors' own conduct."),
    "q-incidents": Control("When are we told of a breach?", ("incidents-told",)),
    "q-api-keys": Control("How are API keys scoped and rotated?", ("exact-scopes", "key-rotation", "revoked-keys")),
    "q-deletion": Control("Is data deleted within 30 days?", ("erasures", "erased-stays-erased", "retention")),
    "q-key-log": Control("Is every key access logged?", ("key-use-logged", "log-without-gaps", "log-sealed")),
}

"""Does a training engine do what a plan says of its noise, its clipping and its sampling?

findings = conformance(engine_subject(network_factory, feature_shape=(64,), classes=10))
wrong = [finding.message for finding in findings if not finding.ok]
"""

from client.training.conformance.optimizer import optimizer_check
from client.training.conformance.subject import Finding, Probe, Replay, Subject, engine_subject
from client.training.conformance.suite import CHECKS, DECLARED, conformance

__all__ = [
    "CHECKS",
    "DECLARED",
    "Finding",
    "Probe",
    "Replay",
    "Subject",
    "conformance",
    "engine_subject",
    "optimizer_check",
]

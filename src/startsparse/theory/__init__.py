"""The theory of random sources as code: embed a target, certify it, and say how wide a source must be.

- ``embed``: a trained net inside a random sparse net, exactly, with a certificate; ``verify`` checks one.
- ``strong_ticket``: a mask alone over frozen random weights, within a tolerance, by exactly solved subset sums.
- ``width_factors``, ``success_probability``, ``lower_bound``, ``hidden_layer_success``: what the theorems say, in numbers.
- ``random_source``: the sources themselves, drawn where they are looked at.
"""

from .certificate import Certificate, verify
from .embedding import Embedding, embed
from .entrance import SourceTooNarrow
from .network import SubNetwork
from .sealed import CertificateError
from .source import Source, SourceLayer, random_source
from .subset_sums import numbers_needed
from .ticket_certificate import TicketCertificate, verify_ticket
from .tickets import Ticket, strong_ticket
from .tracing import trace
from .widths import hidden_layer_success, input_units, lower_bound, success_probability, width_factors

__all__ = [
    "Certificate",
    "CertificateError",
    "Embedding",
    "Source",
    "SourceLayer",
    "SourceTooNarrow",
    "SubNetwork",
    "Ticket",
    "TicketCertificate",
    "embed",
    "hidden_layer_success",
    "input_units",
    "lower_bound",
    "numbers_needed",
    "random_source",
    "strong_ticket",
    "success_probability",
    "trace",
    "verify",
    "verify_ticket",
    "width_factors",
]

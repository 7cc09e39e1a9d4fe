"""The theory of random sources as code: embed a target, certify it, and say how wide a source must be.

- ``embed``: a trained net inside a random sparse net, exactly, with a certificate; ``verify`` checks one.
- ``width_factors``, ``success_probability``, ``lower_bound``, ``hidden_layer_success``: what the theorems say, in numbers.
- ``random_source``: the sources themselves, drawn where they are looked at.
"""

from .audit import CertificateError
from .certificate import Certificate, verify
from .embedding import Embedding, embed
from .entrance import SourceTooNarrow
from .network import SubNetwork
from .source import Source, SourceLayer, random_source
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
    "embed",
    "hidden_layer_success",
    "input_units",
    "lower_bound",
    "random_source",
    "success_probability",
    "trace",
    "verify",
    "width_factors",
]

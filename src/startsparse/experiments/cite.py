"""What to cite for a method, from the references of its docstring."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass

from startsparse import methods

CONFERENCES = {
    "AAAI",
    "CVPR",
    "ECCV",
    "EMNLP",
    "ICCV",
    "ICLR",
    "ICML",
    "IJCAI",
    "KDD",
    "MLSys",
    "NeurIPS",
    "NIPS",
}


@dataclass(frozen=True)
class Reference:
    """One reference, ``text`` as it stands in the docstring.

    Example:
        >>> print(references("rigl")[0].bibtex())
        @inproceedings{evci2020rigging,
          author = {Evci and others},
          title = {{Rigging the Lottery: Making All Tickets Winners}},
          booktitle = {ICML},
          year = {2020},
          eprint = {1911.11134},
          archivePrefix = {arXiv},
          url = {https://arxiv.org/abs/1911.11134},
        }
    """

    text: str

    @property
    def url(self) -> str:
        """Its address, or nothing."""
        found = re.search(r"https?://\S+", self.text)
        return found[0].rstrip(".,)") if found else ""

    @property
    def eprint(self) -> str:
        """Its arXiv number, or nothing."""
        found = re.search(r"arxiv\.org/abs/(\S+)", self.url)
        return found[1] if found else ""

    @property
    def authors(self) -> str:
        """``"Evci et al."``, ``"Zhu and Gupta"``, ``"Gadhikar, Mukherjee, Burkholz"``."""
        return ", ".join(self._parts[: self._num_authors])

    @property
    def title(self) -> str:
        """Its title, or nothing where it is named by its venue alone."""
        return ", ".join(part for part in self._parts[self._num_authors :] if not _VENUE.fullmatch(part))

    @property
    def venue(self) -> str:
        """Where it appeared, without the year, or nothing."""
        return next((m[1].strip() for part in self._parts if (m := _VENUE.fullmatch(part))), "")

    @property
    def year(self) -> str:
        """When it appeared; of its arXiv number where nothing else is said."""
        said = next((m[2] for part in self._parts if (m := _VENUE.fullmatch(part))), "")
        return said or (f"20{self.eprint[:2]}" if self.eprint else "")

    def bibtex(self) -> str:
        """A BibTeX entry."""
        where = "booktitle" if self.venue in CONFERENCES else "journal"
        kind = "misc" if not self.venue else "inproceedings" if where == "booktitle" else "article"
        fields = {
            "author": self._bibtex_authors(),
            "title": f"{{{self.title}}}" if self.title else "",
            where: self.venue,
            "year": self.year,
            "eprint": self.eprint,
            "archivePrefix": "arXiv" if self.eprint else "",
            "url": self.url,
            "note": "" if self.title else self.text,
        }
        first = re.sub(r"\W", "", self.authors.split()[0].lower())
        word = next((w for w in re.findall(r"\w+", self.title.lower()) if w not in _SMALL), "")
        lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value]
        return "\n".join([f"@{kind}{{{first}{self.year}{word},", *lines, "}"])

    @property
    def _parts(self) -> list[str]:
        text = re.sub(r"https?://\S+", "", self.text)
        text = re.sub(r"\([^)]*\)", "", text)
        parts = [part.strip() for part in text.split(", ")]
        return [
            part.rstrip(",.") if not part.endswith("al.") else part
            for part in parts
            if not _WHERE.match(part)
        ]

    @property
    def _num_authors(self) -> int:
        first = self._parts[0]
        if " et al" in first or " and " in first:
            return 1
        rest = self._parts[1:]
        return 1 + next(
            (i for i, part in enumerate(rest) if not re.fullmatch(r"[A-Z][\w'-]+", part)), len(rest)
        )

    def _bibtex_authors(self) -> str:
        return self.authors.replace(" et al.", " and others").replace(", ", " and ")


_VENUE = re.compile(r"([^\d]*?)\s*\b((?:19|20)\d\d)")
_WHERE = re.compile(
    r"(sections?|chapters?|appendix|algorithm|equations?|abstract|tables?|figures?)\b|$", re.IGNORECASE
)
_SMALL = {"a", "an", "the", "on", "what", "s", "to", "do", "we", "why"}


def references(name: str) -> list[Reference]:
    """The references of a method, its own paper first.

    Raises:
        ValueError: an unknown method, or one whose docstring names no paper.
    """
    text = inspect.getdoc(methods.get(name)) or ""
    section = re.search(r"^References:\n((?:[ \t]+\S.*\n?)+)", text, re.MULTILINE)
    if section is None:
        raise ValueError(f"method {name!r} names no reference in its docstring")
    flat = " ".join(section[1].split())
    return [Reference(one.strip()) for one in re.findall(r"\S.*?https?://\S+|\S.+$", flat)]

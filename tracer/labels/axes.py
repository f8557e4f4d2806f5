"""The axes of a product of weights and values, and of the map that its labels lie on: one grammar for all."""

from __future__ import annotations

from dataclasses import dataclass
from string import ascii_letters


@dataclass(frozen=True)
class Axes:
    """A letter for each axis of weights, values and their product, as einsum has them, and of the map.

    Where a letter stands tells what its axis is:

    ============ === ====== ======
    axis         map values output
    ============ === ====== ======
    batch, heads yes yes    yes
    query        yes no     yes
    key          yes yes    no
    dim          no  yes    yes
    ============ === ====== ======

    The map has the letters of the weights, in any order, and more where one matrix is for several maps.

    Example:
        >>> axes = Axes("bhqk", "bkhd", "bqhd", "bhqk")
        >>> axes.query, axes.key, axes.dim, axes.columns, str(axes)
        ('q', 'k', 'd', (3,), 'bhqk,bkhd->bqhd|bhqk')
    """

    weights: str
    values: str
    output: str
    map: str

    def __str__(self) -> str:
        return f"{self.weights},{self.values}->{self.output}|{self.map}"

    @property
    def query(self) -> str:
        return "".join(letter for letter in self.map if letter not in self.values)

    @property
    def key(self) -> str:
        return "".join(letter for letter in self.map if letter not in self.output)

    @property
    def dim(self) -> str:
        return "".join(letter for letter in self.output if letter not in self.map)

    @property
    def rows(self) -> tuple[int, ...]:
        """The axes of the map along which queries lie, and nothing of the values does."""
        return self._places(self.query)

    @property
    def columns(self) -> tuple[int, ...]:
        """The axes of the map that are summed over."""
        return self._places(self.key)

    @property
    def rows_first(self) -> str:
        """The letters of the map with its columns last, and the others in the order of the output."""
        return "".join(letter for letter in self.output if letter in self.map) + self.key

    def _places(self, letters: str) -> tuple[int, ...]:
        return tuple(place for place, letter in enumerate(self.map) if letter in letters)


def kernel_axes(ndim: int) -> Axes:
    """The axes of a map of two axes or more in a kernel: queries and keys come last, behind batch and heads.

    >>> str(kernel_axes(3))
    'abc,acd->abd|abc'
    """
    map, dim = ascii_letters[:ndim], ascii_letters[ndim]
    lead, query, key = map[:-2], map[-2], map[-1]
    return Axes(map, f"{lead}{key}{dim}", f"{lead}{query}{dim}", map)

"""Sizes that know which channels they count.

While a network is traced, `x.shape[1]` returns a `Size`: an int that remembers that it counts the channels of x. Code that computes with it
(`c // 2`, `c * h * w`) keeps the memory, so that a size which follows a pruned network can be told from a literal of the same value. Where
a size leaves this arithmetic (a square root, a comparison), its channels are kept.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from rlprune.graph.labels import LabelSpace

Number = int | Fraction


class Symbol:
    """The number of entries along one axis: of an activation, or of a parameter whose labels are not known yet."""

    __slots__ = ("known", "owner", "slot", "space")

    def __init__(self, space: "LabelSpace", known: Any = None, slot: tuple[str, int] | None = None, owner: str | None = None) -> None:
        self.space, self.known, self.slot, self.owner = space, known, slot, owner  # owner: the module whose attribute it is

    @property
    def labels(self) -> "np.ndarray | None":
        """What is counted, shape (value,); None while nothing is known about it."""
        if self.known is None and self.slot is not None:
            labels = self.space.slots.get(self.slot)
            return None if isinstance(labels, str) else labels
        found: np.ndarray | None = self.known
        return found


class Form(dict[Symbol, Number]):
    """A sum of symbols, each with a factor; constants do not matter, as they do not change."""

    space: "LabelSpace"


class Size(int):
    """An int that is a sum of numbers of channels."""

    symbols: Form

    @staticmethod
    def make(value: int, symbols: dict[Symbol, Number]) -> int:
        """A Size, or a plain int where no symbol is left."""
        symbols = {symbol: factor for symbol, factor in symbols.items() if factor}
        if not symbols:
            return value
        size = Size(value)
        size.symbols = Form(symbols)
        size.symbols.space = next(iter(symbols)).space
        return size

    @staticmethod
    def of(value: int, space: "LabelSpace", labels: Any = None, slot: tuple[str, int] | None = None, owner: str | None = None) -> "Size":
        """The number of entries of one axis."""
        size = Size(value)
        size.symbols = Form({Symbol(space, labels, slot, owner): 1})
        size.symbols.space = space
        return size

    @property
    def bare(self) -> Symbol | None:
        """The one symbol that this size equals."""
        if len(self.symbols) == 1:
            symbol, factor = next(iter(self.symbols.items()))
            labels = symbol.labels
            if factor == 1 and (labels is None or len(labels) == int.__index__(self)):
                return symbol
        return None

    @property
    def positive(self) -> bool:
        """Whether this is a sum of numbers of channels and nothing else, so that it is never zero."""
        known = [(symbol.labels, factor) for symbol, factor in self.symbols.items()]
        if any(labels is None or factor < 0 for labels, factor in known):
            return False
        return sum(len(labels) * factor for labels, factor in known if labels is not None) == int.__index__(self)

    @property
    def live(self) -> bool:
        """Whether the trace that made this size goes on."""
        return self.symbols.space.open

    def escape(self, what: str) -> None:
        """Keep what this size counts: it is used as a number."""
        if self.live:
            self.symbols.space.escapes += [(symbol, what) for symbol in self.symbols]

    def _plus(self, other: Any, sign: int, own: int) -> Any:
        if not isinstance(other, int) or isinstance(other, bool):
            return NotImplemented
        value = own * int.__index__(self) + sign * int.__index__(other)
        if not self.live:
            return value
        symbols: dict[Symbol, Number] = {symbol: own * factor for symbol, factor in self.symbols.items()}
        if isinstance(other, Size):
            for symbol, factor in other.symbols.items():
                symbols[symbol] = symbols.get(symbol, 0) + sign * factor
        return Size.make(value, symbols)

    def __add__(self, other: Any) -> Any:
        return self._plus(other, 1, 1)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        return self._plus(other, -1, 1)

    def __rsub__(self, other: Any) -> Any:
        return self._plus(other, 1, -1)

    def __neg__(self) -> Any:
        return self._plus(0, 1, -1)

    def __pos__(self) -> Any:
        return self

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, Size):
            self.escape("their number is multiplied by another")
            other.escape("their number is multiplied by another")
        elif isinstance(other, float):
            self.escape("their number enters the code's arithmetic")
            return float(int.__index__(self)) * other
        elif not isinstance(other, int):
            return NotImplemented
        value = int.__index__(self) * int.__index__(other)
        if isinstance(other, Size) or not self.live:
            return value
        return Size.make(value, {symbol: factor * int(other) for symbol, factor in self.symbols.items()})

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Any:
        if isinstance(other, int) and not isinstance(other, Size) and self.live and other != 0 and int.__index__(self) % other == 0:
            symbols: dict[Symbol, Number] = {symbol: Fraction(factor) / other for symbol, factor in self.symbols.items()}
            return Size.make(int.__index__(self) // other, symbols)
        self.escape("their number enters the code's arithmetic")
        if isinstance(other, Size):
            other.escape("their number enters the code's arithmetic")
            other = int.__index__(other)
        return int.__index__(self) // other

    def __mod__(self, other: Any) -> Any:
        if isinstance(other, Size):
            other.escape("their number enters the code's arithmetic")
            other = int.__index__(other)
        value = int.__index__(self) % other
        if value == 0 and self.live and isinstance(other, int):
            return Remainder(self, int(other))
        self.escape("their number enters the code's arithmetic")
        return value

    def __bool__(self) -> bool:
        if not self.positive:
            self.escape("their number is compared in the code")
        return int.__index__(self) != 0

    def _compare(self, other: Any, name: str) -> Any:
        outcome = getattr(int, name)(self, other)
        if outcome is NotImplemented or not self.live:
            return outcome
        if isinstance(other, Size):
            if self.symbols == other.symbols:
                return outcome
            one, two = self.bare, other.bare
            if one is not None and two is not None and name in ("__eq__", "__ne__") and outcome == (name == "__eq__"):
                for symbol, other_symbol in ((one, two), (two, one)):
                    if symbol.slot is None and symbol.known is None:
                        symbol.known = other_symbol.labels
                self.symbols.space.ties.append((one, two))  # an axis that the code requires to be equal to another
                return outcome
            other.escape("their number is compared in the code")
        elif (name, other) in _ALWAYS and self.positive:
            return outcome
        self.escape("their number is compared in the code")
        return outcome

    def __eq__(self, other: Any) -> Any:
        return self._compare(other, "__eq__")

    def __ne__(self, other: Any) -> Any:
        return self._compare(other, "__ne__")

    def __lt__(self, other: Any) -> Any:
        return self._compare(other, "__lt__")

    def __le__(self, other: Any) -> Any:
        return self._compare(other, "__le__")

    def __gt__(self, other: Any) -> Any:
        return self._compare(other, "__gt__")

    def __ge__(self, other: Any) -> Any:
        return self._compare(other, "__ge__")

    def __hash__(self) -> int:
        if self.live:  # a key: other numbers of channels may find something else
            self.symbols.space.keys.extend(self.symbols)
        return int.__hash__(self)

    def __str__(self) -> str:
        hash(self)  # text may become a key
        return int.__repr__(self)

    __repr__ = __str__

    def __format__(self, form: str) -> str:
        hash(self)
        return int.__format__(self, form)

    def __reduce__(self) -> Any:
        return int, (int.__index__(self),)

    def __copy__(self) -> "Size":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Size":
        return self


class Remainder(int):
    """Zero: what is left when a size is divided. Code may ask whether it is zero; then it stays so."""

    size: Size
    divisor: int

    def __new__(cls, size: Size, divisor: int) -> "Remainder":
        """The remainder of a size that the divisor divides."""
        made = super().__new__(cls, 0)
        made.size, made.divisor = size, divisor
        return made

    def _asked(self, other: Any, name: str) -> Any:
        if self.size.live:
            if (name, other) in (("__eq__", 0), ("__ne__", 0), ("__bool__", None), ("__gt__", 0)):
                self.size.symbols.space.divisors.append((self.size, self.divisor))
            else:
                self.size.escape("their number is compared in the code")
        return bool(int.__index__(self)) if name == "__bool__" else getattr(int, name)(self, other)

    def __bool__(self) -> bool:
        return bool(self._asked(None, "__bool__"))

    def __eq__(self, other: Any) -> Any:
        return self._asked(other, "__eq__")

    def __ne__(self, other: Any) -> Any:
        return self._asked(other, "__ne__")

    def __gt__(self, other: Any) -> Any:
        return self._asked(other, "__gt__")

    __hash__ = int.__hash__


# Comparisons that come out the same however many channels are left.
_ALWAYS = frozenset((name, value) for value in (0, -1) for name in ("__eq__", "__ne__", "__gt__", "__le__")) | {
    ("__ge__", 1),
    ("__lt__", 1),
}


def _escaping(name: str) -> Callable[..., Any]:
    plain = getattr(int, name)

    def method(self: Size, *others: Any) -> Any:
        self.escape("their number enters the code's arithmetic")
        for other in others:
            if isinstance(other, Size):
                other.escape("their number enters the code's arithmetic")
        result = plain(self, *others)
        return int.__index__(result) if isinstance(result, Size) else result

    method.__name__ = name
    return method


for (
    _name
) in """__truediv__ __rtruediv__ __rfloordiv__ __rmod__ __pow__ __rpow__ __divmod__ __rdivmod__ __float__ __int__ __round__ __trunc__
    __ceil__ __floor__ __and__ __or__ __xor__ __lshift__ __rshift__ __rand__ __ror__ __rxor__ __rlshift__ __rrshift__ __invert__ __abs__
    bit_length""".split():
    setattr(Size, _name, _escaping(_name))


def plain(value: Any) -> Any:
    """The same nested lists, tuples and dicts with plain ints."""
    if isinstance(value, Size):
        return int.__index__(value)
    if isinstance(value, list | tuple) and type(value).__name__ != "Size" and not hasattr(value, "_fields"):
        return type(value)(plain(item) for item in value)
    if isinstance(value, tuple):  # torch.Size and named tuples
        return tuple(plain(item) for item in value) if not hasattr(value, "_fields") else type(value)(*map(plain, value))
    if isinstance(value, slice):
        return slice(plain(value.start), plain(value.stop), plain(value.step))
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def sizes_in(value: Any) -> list[Size]:
    """Every Size in nested lists, tuples, slices and dicts."""
    if isinstance(value, Size):
        return [value]
    if isinstance(value, list | tuple):
        found: list[Size] = []
        for item in value:
            kind = type(item)
            if kind is Size:
                found.append(item)
            elif kind is not int and (kind is tuple or kind is list or isinstance(item, list | tuple | slice | dict)):
                found += sizes_in(item)
        return found
    if isinstance(value, slice):
        return sizes_in((value.start, value.stop, value.step))
    if isinstance(value, dict):
        return sizes_in(list(value.values()))
    return []


def _spent(name: str) -> Callable[..., Any]:
    plain_method = getattr(int, name)

    def method(self: Remainder, *others: Any) -> Any:
        self.size.escape("their number enters the code's arithmetic")
        return plain_method(self, *others)

    method.__name__ = name
    return method


for _name in """__add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ __rtruediv__ __floordiv__ __pow__ __neg__
    __lt__ __le__ __ge__     __float__ __int__""".split():
    setattr(Remainder, _name, _spent(_name))

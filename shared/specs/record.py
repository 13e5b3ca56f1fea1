"""What travels between processes: plain facts, frozen, cheap to make and to read."""

import sys
from typing import Annotated

import msgspec

# No NaN, which would pass every check of a range, and of the infinities only that of an impossible log-probability.
Number = Annotated[float, msgspec.Meta(le=sys.float_info.max)]


class Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """On the wire: the values of its fields in their order. Nothing in one can lead back to it: `gc` need not look.

    Say `frozen=True, kw_only=True` anew in each class. `msgspec.structs` has `replace` and `asdict`.
    """

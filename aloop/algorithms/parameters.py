"""Parameters by name: the plainest model there is."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from aloop.errors import ParameterError

__all__ = ["Array", "ParameterDict", "check_like"]

Array: TypeAlias = npt.NDArray[Any]


class ParameterDict(Mapping[str, Array]):
    """Named numpy arrays that are trained in place.

    Names and shapes are fixed from the start; the arrays' contents change. The arrays given are
    copied.

    Parameters:
        parameters: the arrays by name. Integers become 64-bit floats, since steps are fractions.
    """

    def __init__(self, parameters: Mapping[str, npt.ArrayLike]) -> None:
        self._arrays: dict[str, Array] = {}
        for name, value in parameters.items():
            array = np.array(value)
            if array.dtype.kind in "biu":
                array = array.astype(np.float64)
            if array.dtype.kind not in "fc":
                raise ParameterError(
                    f"parameter {name!r} has dtype {array.dtype}; expected floating-point "
                    "numbers; convert it with .astype(float)"
                )
            self._arrays[name] = array

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}: {array.shape}" for name, array in self._arrays.items())
        return f"{type(self).__name__}({shapes})"

    def get_parameter_values(self) -> dict[str, Array]:
        """Give a copy of every array, by name."""
        return {name: array.copy() for name, array in self._arrays.items()}

    def set_parameter_values(self, values: Mapping[str, npt.ArrayLike]) -> None:
        """Set the contents of all arrays, in place.

        Raises `ParameterError`, and changes nothing, if a name is missing or unknown or a shape
        differs.
        """
        # Copies first: a value may be a view of a parameter that is about to change.
        arrays = {name: np.array(value) for name, value in values.items()}
        check_like("value", arrays, self._arrays)
        for name, array in self._arrays.items():
            array[...] = arrays[name]

    def state_dict(self) -> dict[str, Array]:
        """Give a copy of every array, by name."""
        return self.get_parameter_values()

    def load_state_dict(self, state: Mapping[str, npt.ArrayLike], /) -> None:
        """Set the contents of all arrays, in place; see `set_parameter_values`."""
        self.set_parameter_values(state)


def check_like(what: str, given: Mapping[str, Array], parameters: Mapping[str, Array]) -> None:
    """Raise `ParameterError` unless `given` fits the names, shapes and kinds of `parameters`."""
    if given.keys() != parameters.keys():
        missing = sorted(parameters.keys() - given.keys())
        unknown = sorted(given.keys() - parameters.keys())
        raise ParameterError(
            f"the {what}s are named {', '.join(given) or 'nothing'}; expected one for each of the "
            f"parameters {', '.join(parameters)}"
            + (f"; add {', '.join(missing)}" if missing else "")
            + (f"; leave out {', '.join(unknown)}" if unknown else "")
        )
    for name, parameter in parameters.items():
        if np.shape(given[name]) != parameter.shape:
            raise ParameterError(
                f"the {what} of parameter {name!r} has shape {np.shape(given[name])}; expected "
                f"{parameter.shape}, that of the parameter"
            )
        if not np.can_cast(given[name].dtype, parameter.dtype, "same_kind"):
            raise ParameterError(
                f"the {what} of parameter {name!r} has dtype {given[name].dtype}; expected what "
                f"fits into {parameter.dtype}, that of the parameter"
            )

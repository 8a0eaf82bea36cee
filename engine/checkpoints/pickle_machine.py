"""Reading pickles as data: a small machine for the pickle opcodes that builds plain values and executes nothing.

A global becomes a Symbol if its name is allowed and an error otherwise. A call becomes a Call. Nothing is imported or
constructed: torch_files builds the objects of the symbols and calls that it knows. Every opcode is taken off the file's budget.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from mmap import mmap
from typing import IO, Any, cast

from engine.checkpoints.budget import MAX_NAME, MAX_NUMBER_BITS, MAX_OPERATIONS, ReadingBudget
from engine.errors import CheckpointDamaged
from engine.printable import printable

MAX_KEY = 2**31  # numbers up to here differ in their hashes; larger ones can be chosen to be alike


@dataclass(frozen=True)
class Symbol:
    """A name that the pickle mentions, such as torch.FloatStorage; it is never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Call:
    """An object that the pickle would construct: the callable, its arguments, and the state set afterwards."""

    function: Symbol
    arguments: tuple[Any, ...]
    state: Any = None
    items: list[tuple[Any, Any]] = field(default_factory=list)  # set one by one, as for an OrderedDict


@dataclass(eq=False)
class PersistentId:
    """The id of something outside the pickle, such as a tensor's storage."""

    id: Any


def read_pickle(file: IO[bytes] | mmap, is_allowed: Callable[[Symbol], bool], budget: ReadingBudget) -> Any:
    """Return the value of the pickle at the file's position, which is then behind the pickle's end.

    Args:
        is_allowed: tells which globals the pickle may name.

    Raises:
        CheckpointDamaged: the pickle is cut short or malformed, uses an opcode that no checkpoint needs, names a
            global that is not allowed, or takes more than is left of the budget; the message says which.
    """
    machine = PickleMachine(is_allowed, budget)
    try:
        for opcode, argument, _ in pickletools.genops(cast(IO[bytes], file)):
            if opcode.name == "STOP":
                return machine.stack[-1]
            machine.execute(opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise CheckpointDamaged(f"the pickle is malformed: {error}") from error
    raise CheckpointDamaged("the pickle has no end")


class PickleMachine:
    """The stack, marks and memo of one pickle."""

    def __init__(self, is_allowed: Callable[[Symbol], bool], budget: ReadingBudget) -> None:
        self.is_allowed = is_allowed
        self.budget = budget
        self.stack: list[Any] = []
        self.marks: list[int] = []  # heights of the stack
        self.memo: dict[int, Any] = {}

    def execute(self, name: str, argument: Any) -> None:
        """Execute one opcode.

        Raises:
            CheckpointDamaged: no checkpoint needs the opcode, or the budget is spent.
        """
        self.budget.spend_operations(1)
        if name in CONSTANTS:
            self.push_constant(argument)
        elif name in NEW_VALUES:
            self.stack.append(NEW_VALUES[name]())
        elif name in PUTS:
            self.put(len(self.memo) if argument is None else int(argument))
        elif name in GETS:
            self.stack.append(self.memo[int(argument)])
        elif name in ACTIONS:
            ACTIONS[name](self, argument)
        elif name not in ("PROTO", "FRAME"):
            raise CheckpointDamaged(f"the pickle uses the opcode {name}, which no checkpoint needs")

    def push_constant(self, value: Any) -> None:
        """Push a number, text or bytes."""
        if isinstance(value, int) and value.bit_length() > MAX_NUMBER_BITS:
            raise ValueError(f"a number of {value.bit_length()} bits")
        if isinstance(value, (str, bytes, bytearray)):
            self.budget.spend_bytes(len(value))
        self.stack.append(value)

    def put(self, index: int) -> None:
        """Remember the top of the stack."""
        if not 0 <= index <= MAX_OPERATIONS:
            raise ValueError(f"a memo of more than {MAX_OPERATIONS} values")
        self.memo[index] = self.stack[-1]

    def pop(self) -> Any:
        """Remove and return the top of the stack, which must be above the last mark."""
        if self.marks and self.marks[-1] == len(self.stack):
            raise ValueError("nothing above the mark")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        """Remove the last mark, and remove and return what is above it."""
        height = self.marks.pop()
        items = self.stack[height:]
        del self.stack[height:]
        return items

    def push_symbol(self, module: Any, name: Any) -> None:
        """Push a global as a Symbol.

        Raises:
            CheckpointDamaged: it is not allowed.
        """
        if not (isinstance(module, str) and isinstance(name, str)) or len(module) + len(name) > MAX_NAME:
            raise ValueError("a global's name is no text, or a long one")
        symbol = Symbol(module, name)
        if not self.is_allowed(symbol):
            raise CheckpointDamaged(f"the pickle names {printable(str(symbol), 100)}, which no checkpoint needs: refused")
        self.stack.append(symbol)

    def push_call(self, function: Any, arguments: Any) -> None:
        """Push a Call instead of calling."""
        if not isinstance(function, Symbol) or not isinstance(arguments, tuple):
            raise ValueError("something that is no function is called")
        self.stack.append(Call(function, arguments))

    def set_items(self, pairs: list[Any]) -> None:
        """Set items of the dictionary or Call on top of the stack.

        Args:
            pairs: key, value, key, value ...
        """
        target = self.stack[-1]
        keys, values = pairs[::2], pairs[1::2]
        for key in keys:
            check_key(key)
        if isinstance(target, Call):
            target.items.extend(zip(keys, values, strict=True))
        elif isinstance(target, dict):
            target.update(zip(keys, values, strict=True))
        else:
            raise ValueError("items are set on something that has none")

    def append(self, values: list[Any]) -> None:
        """Append to the list on top of the stack."""
        if not isinstance(self.stack[-1], list):
            raise ValueError("something that is no list is appended to")
        self.stack[-1].extend(values)

    def add(self, values: list[Any]) -> None:
        """Add to the set on top of the stack."""
        for value in values:
            check_key(value)
        self.stack[-1].update(values)

    def set_state(self, state: Any) -> None:
        """Set the state of the Call on top of the stack."""
        if not isinstance(self.stack[-1], Call):
            raise ValueError("a state is set on something that has none")
        self.stack[-1].state = state


def check_key(key: Any) -> None:
    """Raise ValueError unless the key is a name or a small number: the hashes of others can be made to collide."""
    is_small = key is None or (isinstance(key, int) and -MAX_KEY <= key <= MAX_KEY)
    if not is_small and not (isinstance(key, str) and len(key) <= MAX_NAME):
        raise ValueError(f"a key is a {type(key).__name__}, or longer than any that checkpoints need")


def new_dict(machine: PickleMachine, _: Any) -> None:
    """Replace the items above the last mark by one dictionary of them."""
    items = machine.pop_to_mark()
    machine.stack.append({})
    machine.set_items(items)


def reduce_(machine: PickleMachine, _: Any) -> None:
    """Replace a callable and its arguments by a Call."""
    arguments, function = machine.pop(), machine.pop()
    machine.push_call(function, arguments)


def stack_global(machine: PickleMachine, _: Any) -> None:
    """Replace a module's name and a name in it by a Symbol."""
    name, module = machine.pop(), machine.pop()
    machine.push_symbol(module, name)


def set_item(machine: PickleMachine, _: Any) -> None:
    """Set one item of the dictionary or Call below it."""
    value, key = machine.pop(), machine.pop()
    machine.set_items([key, value])


def discard(_: Any) -> None:
    """Do nothing with a value that the pickle pops."""


def tuple_of(count: int) -> "Action":
    """Return the action that replaces the top values of the stack by a tuple of them."""

    def action(machine: PickleMachine, _: Any) -> None:
        machine.stack.append(tuple(machine.pop() for _ in range(count))[::-1])

    return action


Action = Callable[[PickleMachine, Any], None]
CONSTANTS = {  # opcodes that push their argument
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
NEW_VALUES: dict[str, Callable[[], Any]] = {  # opcodes that push a new value
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_DICT": dict, "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple, "EMPTY_SET": set,
}  # fmt: skip
PUTS = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
GETS = {"GET", "BINGET", "LONG_BINGET"}
ACTIONS: dict[str, Action] = {
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "POP": lambda machine, _: discard(machine.pop()),
    "POP_MARK": lambda machine, _: discard(machine.pop_to_mark()),
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.pop_to_mark())),
    "TUPLE1": tuple_of(1),
    "TUPLE2": tuple_of(2),
    "TUPLE3": tuple_of(3),
    "LIST": lambda machine, _: machine.stack.append(machine.pop_to_mark()),
    "DICT": new_dict,
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.pop_to_mark()),
    "SETITEM": set_item,
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    "ADDITEMS": lambda machine, _: machine.add(machine.pop_to_mark()),
    "GLOBAL": lambda machine, name: machine.push_symbol(*name.split(" ", 1)),
    "STACK_GLOBAL": stack_global,
    "REDUCE": reduce_,
    "NEWOBJ": reduce_,  # cls.__new__(cls, *arguments): a construction like any other
    "BUILD": lambda machine, _: machine.set_state(machine.pop()),
    "BINPERSID": lambda machine, _: machine.stack.append(PersistentId(machine.pop())),
}

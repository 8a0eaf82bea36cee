"""What the reading of one checkpoint file may cost, counted; one budget holds for everything that is done with a file."""

from dataclasses import dataclass

from engine.errors import CheckpointDamaged

# The largest files that are known need a tenth of the operations, and four times their own size in bytes.
MAX_OPERATIONS = 1_000_000  # an opcode, an item of a container that is read, built or copied, a module that is visited, ...
MULTIPLICATIONS = 2**15  # ... or so many multiplications: each takes a few microseconds
BASE_BYTES, BYTES_PER_BYTE = 64 * 2**20, 8  # bytes that may be copied or written: a base, and so many for each of the file
MAX_DEPTH = 100  # of values within values
MAX_NAME = 1000  # characters of a key, a class or a symbol
MAX_NUMBER_BITS = 128
MAX_AXES = 8
MAX_DIRECTORY_BYTES = 2 * 2**20  # of a zip file: 20,000 members


@dataclass
class ReadingBudget:
    """The work that is left for one file: whoever does some of it takes it off first."""

    bytes_left: int
    operations_left: int = MAX_OPERATIONS

    @classmethod
    def for_file(cls, size_bytes: int) -> "ReadingBudget":
        """Return the budget of a file of this size."""
        return cls(BASE_BYTES + BYTES_PER_BYTE * size_bytes)

    def spend_operations(self, count: int) -> None:
        """Take off operations. Raises CheckpointDamaged when there are not as many left."""
        if count > self.operations_left:
            raise CheckpointDamaged(f"reading the file takes more than {MAX_OPERATIONS} operations, which no checkpoint needs")
        self.operations_left -= count

    def spend_multiplications(self, count: int) -> None:
        """Take off multiplications of matrices. Raises CheckpointDamaged when there are not as many left."""
        self.spend_operations(count // MULTIPLICATIONS)

    def spend_bytes(self, count: int) -> None:
        """Take off bytes that will be made. Raises CheckpointDamaged when there are not as many left."""
        if count > self.bytes_left:
            raise CheckpointDamaged(
                f"the file's content is more than {BYTES_PER_BYTE} times as large as the file, which no checkpoint's is"
            )
        self.bytes_left -= count


def check_depth(depth: int) -> None:
    """Raise CheckpointDamaged when values lie too deep within others."""
    if depth > MAX_DEPTH:
        raise CheckpointDamaged(f"the file's values are nested more than {MAX_DEPTH} deep, which no checkpoint's are")

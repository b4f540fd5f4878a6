"""What the monitor tells its children about the log."""

from dataclasses import dataclass

from privsep.log import Level
from privsep.schema.codec import OptionalName


@dataclass(slots=True, frozen=True, kw_only=True)
class SetLevel:
    """Log what is of this level or a higher one, about that connection ("" all that have no level of their own).

    No answer.
    """

    level: Level
    connection: OptionalName

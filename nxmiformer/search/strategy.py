"""How assignments that fit a budget are found."""

import abc

from nxmiformer.search.table import Assignment, Table


class Strategy(abc.ABC):
    """Finds assignments that fit."""

    @abc.abstractmethod
    def __call__(self, table: Table, budget: int, most: int) -> list[Assignment]:
        """At most `most` assignments that cost at most `budget` each, those of the least predicted damage first.

        Raises:
            ValueError: none fits. The message has the smallest possible budget.
        """

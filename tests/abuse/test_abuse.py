"""Beside every attack the victim is served, and the API's memory stays within its limit.

The attacks are in tests/abuse/attacks. Latencies are recorded, not asserted: `make abuse` writes them to runs/abuse.
"""

import logging

import pytest

from tests.abuse.attacks import ATTACKS
from tests.abuse.conftest import SMALL

BY_LINE = sorted(ATTACKS.values(), key=lambda attack: (not attack.line.isdecimal(), attack.line.zfill(2)))
CHOSEN = [attack.in_small() for attack in BY_LINE if attack.small] if SMALL else BY_LINE
logger = logging.getLogger(__name__)


@pytest.mark.parametrize("attack", CHOSEN, ids=lambda attack: attack.name)
def test_the_victim_is_served_beside(attack, arena, figures):
    outcome = arena.run(attack)
    defects = outcome.defects()
    logger.info(figures.add(outcome, arena.settle(broken=bool(defects))))
    assert not defects, "\n".join([*defects[:20], f"the attacker saw {outcome.report.answers}"])
    assert outcome.report.answers, "the attack has not met the service"

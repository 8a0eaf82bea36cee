"""Running every check side by side, and printing what they found."""

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cli.doctor.broker import check_broker
from cli.doctor.database import check_postgres
from cli.doctor.findings import Finding, Findings, Verdict, first_line, problem
from cli.doctor.host import check_certificate, check_device, check_disk, check_models
from cli.doctor.store import check_store
from jobs.environment import SettingsInvalid, read_settings
from jobs.settings import Settings

LIMIT_S = 120.0  # for all checks, which run side by side; the hash of a large checkpoint takes the longest
COLORS = {"ok": "green", "warning": "yellow", "problem": "red"}
Check = Callable[[Settings], Findings]
CHECKS: Mapping[str, Check] = {
    "postgres": check_postgres,
    "broker": check_broker,
    "store": check_store,
    "checkpoints": check_models,
    "credentials": check_certificate,
    "device": check_device,
    "disk": check_disk,
}


def print_findings(environment: Mapping[str, str], *, as_json: bool) -> bool:
    """Run all checks and print the findings; return whether none is a problem."""
    with Console(stderr=True).status("checking servers, checkpoints, device"):
        findings = examine(environment)
    if as_json:
        console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
        console.print(json.dumps(list(map(asdict, findings)), indent=2))
    else:
        Console().print(as_table(findings))
    return all(finding.verdict != Verdict.PROBLEM for finding in findings)


def as_table(findings: list[Finding]) -> Table:
    """Return the findings as a table for people."""
    table = Table("name", "", "found", "what to do")
    for finding in findings:
        verdict = f"[{COLORS[finding.verdict]}]{finding.verdict}[/]"
        table.add_row(finding.name, verdict, escape(finding.found), escape(finding.advice))
    return table


def examine(environment: Mapping[str, str], checks: Mapping[str, Check] = CHECKS, limit_s: float = LIMIT_S) -> list[Finding]:
    """Run the checks side by side and return what they found; one that fails or hangs stops no other."""
    try:
        settings = read_settings(environment)
    except SettingsInvalid as error:
        return [problem("settings", str(error).removeprefix("settings: "), "set these variables: jobs/settings.py explains each")]
    deadline = time.monotonic() + limit_s
    running = [RunningCheck(name, check, settings) for name, check in checks.items()]
    return [finding for check in running for finding in check.findings_by(deadline, limit_s)]


class RunningCheck:
    """A check in a thread of its own, which does not keep the process alive."""

    def __init__(self, name: str, check: Check, settings: Settings) -> None:
        self.name = name
        self.findings: list[Finding] = []
        self.thread = threading.Thread(target=self.run, args=(check, settings), daemon=True)
        self.thread.start()

    def run(self, check: Check, settings: Settings) -> None:
        """Collect the findings of the check."""
        try:
            self.findings.extend(check(settings))
        except Exception as error:  # whatever the error is, it is a finding
            self.findings.append(problem(self.name, first_line(error), "see the message"))

    def findings_by(self, deadline: float, limit_s: float) -> list[Finding]:
        """Wait until a time of the monotonic clock; return the findings until then, and one more if the check still runs."""
        self.thread.join(max(deadline - time.monotonic(), 0.0))
        if self.thread.is_alive():
            late = problem(self.name, f"no answer within {limit_s:g} s", "see whether it hangs, or is only slow")
            return [*self.findings, late]
        return self.findings

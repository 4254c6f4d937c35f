"""Runs real clients against our server and `mlx_lm.server`.

python -m tests.clients                     all of them; writes the README's table
python -m tests.clients llm litellm         these only; the table keeps what earlier runs said of the others
python -m tests.clients llm --side ours     against one server
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time

from tests.clients import report
from tests.clients.agents_puppet import write_agents_puppet
from tests.clients.installing import InstallError, cache_folder, install
from tests.clients.running import Outcome, run
from tests.clients.servers import SIDES, Servers
from tests.clients.table import Client, read_clients
from tests.support.float32 import write_float32_demo


def main() -> int:
    """Exit status: 1 where a check failed against our server, or a client could not be run."""
    parser = argparse.ArgumentParser(prog="python -m tests.clients", description=__doc__)
    parser.add_argument("clients", nargs="*", metavar="CLIENT", help="keys of clients.toml (all)")
    parser.add_argument("--side", choices=SIDES, action="append", help="which server (both)")
    args = parser.parse_args()
    known = read_clients()
    if unknown := set(args.clients) - {client.key for client in known}:
        parser.error(f"no client is called {', '.join(sorted(unknown))}")
    chosen = [client for client in known if client.key in args.clients or not args.clients]
    sides = tuple(args.side or SIDES)
    started = time.monotonic()
    results = _run_all(chosen, sides)
    rows = report.keep(chosen, results, cache_folder() / "results.json")
    if (shown := report.table(known, rows)) is not None:
        report.write_readme(shown)
    ours = [outcome for row in results.values() for side, outcome in row.items() if side == "ours"]
    passed, of = sum(outcome.passed for outcome in ours), sum(len(outcome.failures) for outcome in ours)
    print(
        f"{len(chosen)} clients in {time.monotonic() - started:.0f} s; against our server {passed} of {of} checks held"
    )
    print(f"every reason: {cache_folder() / 'results.json'}; what they printed: {cache_folder() / 'work'}")
    return 0 if passed == of else 1


def _run_all(clients: list[Client], sides: tuple[str, ...]) -> report.Results:
    results: report.Results = {client.key: {} for client in clients}
    work = cache_folder() / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    with Servers({"demo": write_float32_demo, "puppet": write_agents_puppet}, work) as servers:
        for client in clients:
            try:
                installed = install(client)
            except InstallError as error:
                failures = dict.fromkeys(client.expected, f"not installed: {error}")
                results[client.key] = dict.fromkeys(sides, Outcome(failures, 0, False))
                print(f"{client.name}: NOT INSTALLED: {error}", file=sys.stderr)
                continue
            for side in sides:
                outcome = run(client, installed, servers.url(side, client.model), work / f"{client.key}-{side}")
                results[client.key][side] = outcome
                if outcome.timed_out:
                    servers.stop(side)  # it may still be at work on what nobody waits for
                _tell(client, side, outcome)
    return results


def _tell(client: Client, side: str, outcome: Outcome) -> None:
    held = f"{outcome.passed} of {len(outcome.failures)}"
    print(f"{client.name}, {side}: {held} in {outcome.seconds} s", flush=True)
    for check, failure in outcome.failures.items():
        if failure:
            print(f"    {check}: {failure}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

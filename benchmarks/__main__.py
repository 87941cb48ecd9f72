"""`python -m benchmarks pointcloud|video|nlp`: ours beside the peers, in turn, on real data."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from benchmarks import harness, results
from benchmarks.data import Unavailable
from benchmarks.domains import DOMAINS, Domain
from benchmarks.machine import conditions, device_name


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the arguments ask for; 1 where a result was wrong or a competitor failed."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    chosen = next((name for name in arguments if name in DOMAINS), None)
    domain = DOMAINS[chosen or "pointcloud"]()
    options = _parser(domain).parse_args(arguments)
    path = results.path_for(device_name(options.device), options.domain)
    if options.markdown:
        print(domain.markdown(results.read(path)))
        return 0
    rounds = 2 if options.quick else options.rounds
    documents = options.documents or (domain.quick_documents if options.quick else 0)
    settings = harness.Settings(options.device, options.dtype, options.threads, rounds, documents)
    where = conditions(options.device)
    print(f"{where.device}; {where.cpu}; {where.versions}; commit {where.commit}; {rounds} rounds", flush=True)
    rows: list[results.Row] = []
    for name in options.workload or (domain.quick if options.quick else domain.workloads):
        cases = [case for case in options.case or domain.cases if domain.runs(case, name)]
        if not cases:
            continue
        try:
            work = domain.workloads[name]()
        except Unavailable as missing:
            print(f"{name}: skipped, {missing}", flush=True)
            continue
        print(f"\n{work.name}: {work.summary}", flush=True)
        for case in cases:
            found: list[results.Row] = []
            try:
                with harness.torch_threads(max(settings.threads)):
                    for trial in domain.cases[case](work, settings):
                        print(f"  {case}: {trial.shape}", file=sys.stderr, flush=True)
                        found += harness.run(trial, settings, where)
            except Unavailable as missing:
                print(f"{case}, {name}: skipped, {missing}", flush=True)
            if not found:
                continue
            print(f"\n{case}, {work.name}\n{results.table(found)}", flush=True)
            rows += found
            if not options.quick:
                results.merge(path, found)
    if not options.quick and rows:
        print(f"\nwritten to {path}")
    return int(any(row.status == "wrong" or row.status.startswith("failed") for row in rows))


def _parser(domain: Domain) -> argparse.ArgumentParser:
    cases, workloads = domain.cases, domain.workloads
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("domain", choices=list(DOMAINS))
    parser.add_argument("--case", type=_names(cases), help=f"of {', '.join(cases)}, separated by commas; default all")
    parser.add_argument("--workload", type=_names(workloads), help=f"of {', '.join(workloads)}; default all")
    parser.add_argument("--dtype", type=_names(harness.DTYPES), default=("fp32", "bf16"), help="default fp32,bf16")
    parser.add_argument("--threads", type=_counts, default=(1, 2), help="of torch and ours; default 1,2")
    text = f"samples of each competitor, taken in turn; default {domain.rounds}"
    parser.add_argument("--rounds", type=int, default=domain.rounds, help=text)
    if domain.quick_documents:
        text = "of each corpus; default what each case needs for its answer"
        parser.add_argument("--documents", type=_count, help=text)
    parser.set_defaults(documents=0)
    parser.add_argument("--quick", action="store_true", help="2 rounds on the smallest workload, no CSV")
    parser.add_argument("--markdown", action="store_true", help="print this device's CSV as a table for a README")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=["cpu", "cuda"], default=default, help=f"default {default} here")
    return parser


def _names(known: object) -> type:
    """An argparse type: names of `known`, separated by commas."""
    allowed = list(known)  # type: ignore[call-overload]

    def parse(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        for name in names:
            if name not in allowed:
                raise argparse.ArgumentTypeError(f"must be of {', '.join(allowed)}, got {name!r}")
        return names

    return parse  # type: ignore[return-value]


def _count(text: str) -> int:
    (count,) = _counts(text) if "," not in text else (0,)
    if count < 1:
        raise argparse.ArgumentTypeError(f"must be one number, got {text!r}")
    return count


def _counts(text: str) -> tuple[int, ...]:
    counts = tuple(int(part) for part in text.split(","))
    if min(counts) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text!r}")
    return counts


if __name__ == "__main__":
    sys.exit(main())

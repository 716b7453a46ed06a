"""The command line: the language server, and the same explanation without an editor.

``python -m server`` and the script ``spex`` are the same. Results go to standard output, messages
to standard error. Exit codes: 0 done, 1 findings, 2 usage or input, 3 model, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from server import VERSION
from server.settings import AMOUNTS, INDICES, METHODS, NUMBERS, VALUES, check
from spex_engine.wire import InputError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command and (options.stdio or options.tcp):
        parser.error(f"--stdio and --tcp serve an editor: leave them out of {options.command}")
    _log(options)
    if options.command:
        module = importlib.import_module(options.module)  # of the one command that is wanted
        sys.exit(getattr(module, options.run)(options))
    if not (options.stdio or options.tcp):
        parser.error("say --stdio (or --tcp HOST:PORT) to serve an editor, or a command")
    from server.app import make_server
    from server.tcp import serve_tcp

    server = make_server()
    if options.tcp:
        try:
            serve_tcp(server, *options.tcp)
        except OSError as error:
            parser.exit(2, f"spex: cannot listen there: {error.strerror or error}\n")
    else:
        server.start_io()
    sys.exit(0 if server.shut_down else 1)  # as the protocol asks


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="spex", description="A debugger for prompts: which parts of a prompt act together."
    )
    parser.set_defaults(command=None)
    parser.add_argument("--version", action="version", version=f"spex {VERSION}")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--stdio", action="store_true", help="serve an editor on stdin and stdout")
    way.add_argument(
        "--tcp", type=_address, metavar="HOST:PORT", help="serve an editor on a loopback address"
    )
    parser.add_argument("--log-file", metavar="F", help="write the log here, not to stderr")
    parser.add_argument(
        "--log-level", default="warning", choices=("debug", "info", "warning", "error")
    )
    parser.add_argument("--clientProcessId", type=int, metavar="PID", help=argparse.SUPPRESS)
    commands = parser.add_subparsers(title="commands")

    explain = commands.add_parser("explain", help="explain one prompt file")
    explain.set_defaults(command="explain", module="server.headless", run="explain_file")
    _add_run(explain)
    explain.add_argument("--format", choices=("text", "json"), default="text")
    explain.add_argument("--output", metavar="PATH", help="write the result here, not to stdout")
    explain.add_argument(
        "--yes", action="store_true", help="do not ask before an endpoint is paid for"
    )

    estimate = commands.add_parser(
        "estimate", help="calls, tokens, money or time of explaining a file; nothing is spent"
    )
    estimate.set_defaults(command="estimate", module="server.headless", run="estimate_file")
    _add_run(estimate)
    estimate.add_argument("--format", choices=("text", "json"), default="text")

    cache = commands.add_parser("cache", help="what is kept of earlier runs")
    cache.set_defaults(command="cache", module="server.doctor", run="cache")
    cache.add_argument("action", choices=("stats", "clear"))

    doctor = commands.add_parser(
        "doctor", help="what is installed, and what models and endpoints can do"
    )
    doctor.set_defaults(command="doctor", module="server.doctor", run="doctor")
    _add_model(doctor)
    return parser


def _add_run(command: argparse.ArgumentParser) -> None:
    """The flags that say what is explained and how."""
    command.add_argument("file", metavar="FILE")
    _add_model(command)
    for name, metavar, help_ in (
        ("target", "TEXT", "the answer to explain (default: the model's own)"),
        ("span", "TEXT", "the part of the answer that counts"),
        ("value", "V", "what is measured of it: " + ", ".join(VALUES)),
        ("segments", "KIND", "auto, sentence, line or word"),
        ("budget", "N", "the most masks to ask for (1024)"),
        ("method", "M", ", ".join(METHODS)),
    ):
        command.add_argument(f"--{name}", type=_setting(name), metavar=metavar, help=help_)
    command.add_argument(
        "--contrast", nargs=2, metavar=("A", "B"), help="explain the answer A against the answer B"
    )
    command.add_argument(
        "--choices", nargs="+", metavar="TEXT", help="all answers there are; --target is one"
    )
    command.add_argument("--index", choices=INDICES, metavar="I", help=", ".join(INDICES))
    command.add_argument("--order", type=_setting("order"), metavar="K", help="highest order (3)")
    command.add_argument("--seed", type=_setting("seed"), metavar="N")


def _add_model(command: argparse.ArgumentParser) -> None:
    """The flags that say which model is asked, and what that may cost."""
    command.add_argument(
        "--model",
        type=_setting("model"),
        metavar="URI",
        help="demo, hf:NAME_OR_PATH, openai:NAME, encoder:NAME_OR_PATH, ray+hf:NAME_OR_PATH",
    )
    command.add_argument(
        "--base-url",
        action="append",
        dest="baseUrls",
        metavar="URL",
        help="of an OpenAI-compatible endpoint; several times: a pool that serves the same model",
    )
    command.add_argument(
        "--no-store",
        action="store_const",
        const=False,
        dest="store",
        help="neither reuse evaluations of earlier runs nor keep these",
    )
    command.add_argument(
        "--no-keep-answers",
        action="store_const",
        const=False,
        dest="keepAnswers",
        help="keep no text that a model wrote",
    )
    for key, metavar, help_ in (
        ("apiVersion", "V", "of an Azure endpoint"),
        ("concurrency", "N", "the most requests in flight (32)"),
        ("maxCalls", "N", "the most requests, repeated and failed ones included"),
        ("maxTokens", "N", "the most tokens, input and output (2,000,000)"),
        ("maxCost", "X", "the most money, in the currency of the prices (5)"),
        ("inputPrice", "X", "per million tokens"),
        ("outputPrice", "X", "per million tokens"),
        ("repeats", "N", "answers of each mask, where no log-probability can be had (3)"),
    ):
        flag = re.sub("[A-Z]", lambda letter: f"-{letter.group().lower()}", key)
        command.add_argument(f"--{flag}", type=_setting(key), dest=key, metavar=metavar, help=help_)


def _setting(key: str) -> Callable[[str], Any]:
    """Reads the flag of a setting, with the checks that the setting has."""

    def convert(value: str) -> Any:
        try:
            number = int if key in NUMBERS else float if key in AMOUNTS else str
            return check(key, number(value))
        except InputError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        except ValueError:
            wanted = "a whole number" if key in NUMBERS else "a number"
            raise argparse.ArgumentTypeError(f"expected {wanted}, got {value!r}") from None

    return convert


def _address(value: str) -> tuple[str, int]:
    host, _, port = value.rpartition(":")
    host = host.strip("[]")
    if not host:
        raise argparse.ArgumentTypeError(f"expected HOST:PORT, got {value!r}")
    if host not in LOOPBACK:
        raise argparse.ArgumentTypeError(
            f"{host!r} is no loopback address: the protocol has no password, so only "
            f"{', '.join(LOOPBACK)} are served"
        )
    if not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"expected HOST:PORT, got {value!r}")
    return host, int(port)


def _log(options: argparse.Namespace) -> None:
    level = options.log_level.upper()
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    try:
        logging.basicConfig(level=level, format=form, filename=options.log_file)
    except OSError as error:
        print(f"spex: cannot write the log: {error}", file=sys.stderr)
        sys.exit(2)
    # pygls logs whole messages at INFO, prompts included
    logging.getLogger("pygls").setLevel(max(logging.WARNING, logging.getLevelName(level)))


if __name__ == "__main__":
    main()

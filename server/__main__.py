"""The command line: the language server, and the same explanation without an editor.

``python -m server`` and the script ``spex`` are the same. Results go to standard output, messages
to standard error. Exit codes: 0 done, 1 findings, 2 usage or input, 3 model, 130 interrupted.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from server import VERSION
from server.settings import INDICES, METHODS, NUMBERS, check
from spex_engine.wire import InputError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command and (options.stdio or options.tcp):
        parser.error(f"--stdio and --tcp serve an editor: leave them out of {options.command}")
    _log(options)
    if options.command == "explain":
        from server.headless import explain_file

        sys.exit(explain_file(options))
    if options.command == "doctor":
        from server.headless import doctor

        sys.exit(doctor())
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
    explain.set_defaults(command="explain")
    explain.add_argument("file", metavar="FILE")
    explain.add_argument(
        "--model", type=_setting("model"), metavar="URI", help="demo, hf:NAME_OR_PATH"
    )
    explain.add_argument(
        "--target",
        type=_setting("target"),
        metavar="TEXT",
        help="the answer to explain (default: the model's own)",
    )
    explain.add_argument(
        "--segments",
        type=_setting("segments"),
        metavar="KIND",
        help="auto, sentence, line or word",
    )
    explain.add_argument("--budget", type=_setting("budget"), metavar="N", help="most calls (1024)")
    explain.add_argument("--method", type=_setting("method"), metavar="M", help=", ".join(METHODS))
    explain.add_argument("--index", choices=INDICES, metavar="I", help=", ".join(INDICES))
    explain.add_argument("--order", type=_setting("order"), metavar="K", help="highest order (3)")
    explain.add_argument("--seed", type=_setting("seed"), metavar="N")
    explain.add_argument("--format", choices=("text", "json"), default="text")
    explain.add_argument("--output", metavar="PATH", help="write the result here, not to stdout")
    explain.add_argument(
        "--yes", action="store_true", help="answer a confirmation (nothing here costs money yet)"
    )

    doctor = commands.add_parser("doctor", help="what is installed and whether the worker starts")
    doctor.set_defaults(command="doctor")
    return parser


def _setting(key: str) -> Callable[[str], Any]:
    """Reads the flag of a setting, with the checks that the setting has."""

    def convert(value: str) -> Any:
        try:
            return check(key, int(value) if key in NUMBERS else value)
        except InputError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a whole number, got {value!r}") from None

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

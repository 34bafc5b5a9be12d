"""Which addresses a stage may listen on, for its calls and for its metrics."""

from __future__ import annotations

import ipaddress
import socket

from carrara_services.serving.settings import SettingsError


def check_bind(bind: str, *, insecure: bool) -> None:
    """Refuses an address that other machines can reach, unless the operator said so.

    Raises:
        SettingsError: What is wrong with the address.
    """
    if not bind.startswith("unix:"):
        _check_host_and_port(
            bind, flag="--bind", insecure=insecure, form=" or unix:PATH", safe=" or a Unix socket"
        )


def check_metrics_bind(bind: str, *, insecure: bool) -> None:
    """Refuses an address of the metrics by the same rule.

    Raises:
        SettingsError: What is wrong with the address.
    """
    if bind.startswith("unix:"):
        raise SettingsError(
            f"--metrics-bind {bind}: Prometheus reads no Unix socket; give HOST:PORT"
        )
    _check_host_and_port(bind, flag="--metrics-bind", insecure=insecure)


def refuse_taken(bind: str) -> None:
    """Tries the address with a plain socket: gRPC says why it fails only in a log of its own.

    Raises:
        SettingsError: Why the address cannot be had.
    """
    host, _, port = bind.rpartition(":")
    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM
        )
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise SettingsError(f"--bind {bind}: {error.strerror}") from error


def _check_host_and_port(
    bind: str, *, flag: str, insecure: bool, form: str = "", safe: str = ""
) -> None:
    host, _, port = bind.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise SettingsError(f"{flag} {bind}: give HOST:PORT{form}")
    if not _is_loopback(host.strip("[]")) and not insecure:
        raise SettingsError(
            f"{flag} {bind}: other machines can reach this address, and calls are neither "
            f"encrypted nor authenticated; bind to 127.0.0.1{safe}, or add --insecure"
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

"""A systemd unit for our own server on one machine: it brings the bytes, serves them as a user that may do nothing
else, and lets requests end when it stops."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from gemma_ops.family.formats import GGUF
from gemma_ops.serving.render.rendering import DRAIN, PORT, Deployed, reached_from_elsewhere

WANTS = tuple(GGUF)
_PROGRAM = "/opt/gemma-ops/bin/gemma-ops"
_SEALED = """\
DynamicUser=yes
UMask=0077
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
PrivateUsers=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
RemoveIPC=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM"""


def systemd(job: Deployed) -> str:
    """Return `NAME.service`. Keys of clients and the registry's user reach it as credentials, which nobody else can
    read.

    Raises ConfigError for a registry in a folder, which belongs to somebody else than the unit's own user.
    """
    reached_from_elsewhere(job, "a unit's own user")
    unit = f"gemma-ops-{job.title}"
    keys = job.keys or "/etc/gemma-ops/keys"
    pull = job.pull(f"%C/{unit}/{job.title}-{job.version}")
    serve = job.serve(host="127.0.0.1", keys="%d/keys")
    return "\n".join(
        [
            *(f"# {line}" for line in job.about()),
            f"# {unit}.service: pip install gemma-ops[gguf]=={job.made_by} into /opt/gemma-ops; {keys} holds SHA-256s",
            f"# of the clients' keys. It listens on 127.0.0.1:{PORT}: what other machines reach is for a proxy.",
            "",
            "[Unit]",
            f"Description={job.name} version {job.version} ({job.form}), served by gemma-ops",
            "After=network-online.target",
            "Wants=network-online.target",
            "",
            "[Service]",
            "Type=exec",
            f"CacheDirectory={unit}",
            f"WorkingDirectory=%C/{unit}",
            f"Environment=GEMMA_OPS_CACHE=%C/{unit} HOME=%C/{unit} PYTHONUNBUFFERED=1",
            f"LoadCredential=keys:{keys}",
            "# Where the registry asks for a user: MLFLOW_TRACKING_USERNAME=… and MLFLOW_TRACKING_PASSWORD=…",
            "EnvironmentFile=-/etc/gemma-ops/registry.env",
            f"ExecStartPre={_line(pull)}",
            f"ExecStart={_line(serve)}",
            "TimeoutStartSec=infinity",
            "KillMode=mixed",
            f"TimeoutStopSec={DRAIN}",
            "Restart=on-failure",
            "RestartSec=5",
            f"MemoryMax={job.gib * job.replicas}G",
            *_SEALED.splitlines(),
            "",
            "[Install]",
            "WantedBy=multi-user.target",
            "",
        ]
    )


def _line(words: Sequence[str]) -> str:
    """Return a command as systemd reads it: `$` begins no variable, and `%` only the specifiers that stand here."""
    return " ".join([_PROGRAM, *(_word(word) for word in words[1:])])


def _word(word: str) -> str:
    own = word.startswith(("%C/", "serve.keys=%d/"))
    return shlex.quote(word if own else word.replace("%", "%%")).replace("$", "$$")

"""Who may ask: keys with what they grant, their rates, and HTTPS."""

from __future__ import annotations

import datetime as dt
import hashlib
import ipaddress
import os
import re
import ssl
import subprocess
import sys

import httpx2
import openai
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gemma_ops.errors import ConfigError
from gemma_ops.nano import WEIGHTS
from gemma_ops.serving.keys import Grant, Keys, TooFastError
from tests.helpers import patience
from tests.helpers.live_server import NAME, make_files, serving

DIGEST = hashlib.sha256(b"secret").hexdigest()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("gguf")) / "q8_0" / "model.gguf"


def read(tmp_path, line):
    path = tmp_path / "keys"
    path.write_text(line + "\n")
    return Keys.read(path)


class Ask:
    """A request with a key."""

    def __init__(self, key="secret"):
        self.headers, self.query_params = {"authorization": f"Bearer {key}"}, {}


def test_a_key_grants_what_its_line_says(tmp_path):
    keys = read(tmp_path, f"team-a {DIGEST} rate=120 privacy=local_only")
    assert keys.check(Ask()) == Grant("team-a", "local_only", 120.0)
    assert read(tmp_path, f"team-a {DIGEST}").check(Ask()) == Grant("team-a")


@pytest.mark.parametrize(
    "words", ["rate=fast", "rate=0", "rate=inf", "privacy=open", "budget=-3", "budget=lots", "rate=5 cats=2"]
)
def test_a_line_that_grants_what_is_none_is_refused(tmp_path, words):
    with pytest.raises(ConfigError, match=r"keys:1 grants unknown rights") as caught:
        read(tmp_path, f"team-a {DIGEST} {words}")
    assert "privacy=local_only|paid|any" in caught.value.fix


def test_a_rate_is_kept_and_fills_again():
    now = [0.0]
    grant = Grant("a", rate=6)
    keys = Keys({DIGEST: grant, "0" * 64: Grant("b")}, clock=lambda: now[0])
    for _ in range(6):
        keys.spend(grant)
    with pytest.raises(TooFastError, match="6 requests a minute") as caught:
        keys.spend(grant)
    assert caught.value.retry_after == 10
    now[0] = 10.1
    keys.spend(grant)
    with pytest.raises(TooFastError):
        keys.spend(grant)
    for _ in range(100):
        keys.spend(Grant("b"))


def test_beyond_its_rate_a_key_is_told_to_come_back(file, tmp_path):
    with serving(file, keys=read(tmp_path, f"team-a {DIGEST} rate=1")) as live:
        client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="secret", max_retries=0)
        asked = {"model": NAME, "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
        assert client.chat.completions.create(**asked).choices
        with pytest.raises(openai.RateLimitError, match="1 requests a minute") as caught:
            client.chat.completions.create(**asked)
        assert 1 <= int(caught.value.response.headers["Retry-After"]) <= 60
        assert list(client.models.list())  # costs nothing, and is not counted
        assert [record["key"] for record in live.records] == ["team-a", "team-a"]


def certificate(folder):
    """A certificate for 127.0.0.1 with its key, in two PEM files."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "here")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(private)
    return folder / "cert.pem", folder / "key.pem"


def test_https_with_a_certificate(file, tmp_path, cli):
    chain, key = certificate(tmp_path)
    sets = ["--set", "serve.port=0", "--set", f"serve.certificate={chain}"]
    lone = cli("serve", f"{file}@{WEIGHTS}", *sets)
    assert lone.returncode == 2, lone.stderr
    assert "hold no certificate with its key" in lone.stderr
    command = [sys.executable, "-m", "gemma_ops", "serve", f"{file}@{WEIGHTS}", *sets]
    command += ["--set", f"serve.certificate_key={key}"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    try:
        url = re.search(r"at (https://127\.0\.0\.1:\d+) on", process.stdout.readline())[1]
        context = ssl.create_default_context(cafile=str(chain))
        assert httpx2.get(f"{url}/ready", verify=context).json()["status"] == "ready"
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(f"{url}/ready")
    finally:
        process.terminate()
        patience.finish(process, 30)

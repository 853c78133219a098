"""A private engine that is reached by TLS only, with certificates on both sides (docs.docker.com, "Protect the Docker daemon socket")."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.providers import docker_engine
from tests.sshd import free_port


@contextlib.contextmanager
def tls_engine(folder: Path) -> Iterator[tuple[docker_engine.Engine, dict[str, str]]]:
    """The engine with the busybox image, and the environment that leads to its TLS port.  ``folder`` is for its certificates."""
    make_certificates(folder)
    port = free_port()
    files = [f"--tlscacert={folder}/ca.pem", f"--tlscert={folder}/server.pem", f"--tlskey={folder}/server-key.pem"]
    with docker_engine.private("--host", f"tcp://127.0.0.1:{port}", "--tlsverify", *files) as engine:
        engine.load_busybox()
        yield engine, {"DOCKER_HOST": f"tcp://127.0.0.1:{port}", "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(folder)}
        engine.remove_all()


def make_certificates(folder: Path) -> None:
    """``ca.pem``, ``server.pem`` and ``server-key.pem`` for 127.0.0.1, ``cert.pem`` and ``key.pem`` for a client."""
    authority = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
    root = _builder(name, name, authority.public_key()).add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    key_id = x509.SubjectKeyIdentifier.from_public_key(authority.public_key())
    root = root.add_extension(key_id, critical=False)
    _write(folder / "ca.pem", root.sign(authority, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    for certificate, file, use in (
        ("server.pem", "server-key.pem", ExtendedKeyUsageOID.SERVER_AUTH),
        ("cert.pem", "key.pem", ExtendedKeyUsageOID.CLIENT_AUTH),
    ):
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, certificate)]), name, key.public_key())
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage([use]), critical=False)
        builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(key_id), critical=False)
        _write(folder / certificate, builder.sign(authority, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        _write(folder / file, private)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(hours=1))
    )


def _write(path: Path, text: bytes) -> None:
    path.write_bytes(text)
    path.chmod(0o600)

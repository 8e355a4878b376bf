"""Fixtures of several loop tests: TLS contexts that trust each other."""

from __future__ import annotations

import ssl

import pytest
import trustme


def make_contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's and a client's context; either has a certificate to show."""
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(server)
    authority.configure_trust(server)
    client = ssl.create_default_context()
    authority.issue_cert("client@example.org").configure_cert(client)
    authority.configure_trust(client)
    return server, client


@pytest.fixture(scope="module")
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's and a client's context that trust each other."""
    return make_contexts()


@pytest.fixture(params=["TLSv1_2", "TLSv1_3"])
def versioned(request: pytest.FixtureRequest) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The same, for one version of TLS each."""
    server, client = make_contexts()
    version = ssl.TLSVersion[request.param]
    server.minimum_version = server.maximum_version = version
    return server, client

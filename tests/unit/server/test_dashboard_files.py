"""The dashboard's files as the server sends them."""

from __future__ import annotations

import re

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from evenflow.server.dashboard import dashboard_router, ui_files


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    app.include_router(dashboard_router())
    return TestClient(app)


def test_page_is_found_without_the_slash(client: TestClient) -> None:
    response = client.get("/ui")
    assert response.url.path == "/ui/"
    assert "<title>evenflow</title>" in response.text


def test_redirect_is_relative_so_that_a_proxy_may_add_a_prefix(client: TestClient) -> None:
    response = client.get("/ui", follow_redirects=False)
    assert response.headers["Location"] == "ui/"


def test_every_file_of_the_page_is_served_with_its_type(client: TestClient) -> None:
    types = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    names = [path.name for path in ui_files().iterdir() if path.suffix != ".html"]
    for name in names:
        response = client.get(f"/ui/{name}")
        assert response.status_code == 200
        assert response.headers["Content-Type"].split(";")[0] == types[f".{name.split('.')[-1]}"]


def test_page_is_only_allowed_what_this_server_sends(client: TestClient) -> None:
    policy = client.get("/ui/").headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy


def test_page_needs_nothing_that_its_policy_forbids() -> None:
    page = (ui_files() / "index.html").read_text("utf-8")
    assert not re.search(r"\sstyle=|\son\w+=|<style|<script(?![^>]*\ssrc=)", page)
    scripts = [path.read_text("utf-8") for path in ui_files().glob("*.js")]
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function"
    assert not any(re.search(forbidden, script) for script in scripts)


def test_file_is_sent_again_only_when_it_changed(client: TestClient) -> None:
    tag = client.get("/ui/app.js").headers["ETag"]
    assert client.get("/ui/app.js", headers={"If-None-Match": tag}).status_code == 304
    assert client.get("/ui/app.js", headers={"If-None-Match": '"old"'}).status_code == 200


def test_other_paths_are_left_to_the_server(client: TestClient) -> None:
    assert client.get("/ui/state").status_code == 404
    assert client.get("/ui/../dashboard.py").status_code == 404

import ssl
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import ip_network
from pathlib import Path
from socket import AF_INET6, create_connection, create_server, has_ipv6

import pytest

from jobs.webhooks.deliveries import DeliveryOutcome
from jobs.webhooks.egress import HOST_REFUSED, EgressPolicy
from tests.receivers import Answer, receiving
from worker.reconciler.webhook_sender import WebhookSender, parse_retry_after

LOOPBACK = [ip_network("127.0.0.0/8"), ip_network("::1")]
CERTIFICATE = Path(__file__).parents[2] / "data" / "hooks.example.pem"  # for the name hooks.example alone, by nobody's authority


@pytest.fixture
def receiver():
    with receiving() as receiver:
        yield receiver


def poster(*addresses, timeout_s=5.0, allowed=LOOPBACK, **options):
    """One for which every host is at these addresses."""
    resolve = {"resolve": lambda host, port: addresses} if addresses else {}
    return WebhookSender(
        policy=EgressPolicy(allow_http=True, allowed_networks=allowed, **resolve), timeout_s=timeout_s, **options
    )


def post(url, *addresses, **options):
    return poster(*addresses, **options).post(url, {"webhook-id": "1"}, b'{"a":1}')


def test_what_is_posted_arrives(receiver):
    url = f"http://Hooks.example:{receiver.port}/a%20b?c=d"
    assert post(url, "127.0.0.1") == DeliveryOutcome(status=204)
    request = receiver.get()
    assert (request.path, request.body, request.headers["host"]) == ("/a%20b?c=d", b'{"a":1}', f"Hooks.example:{receiver.port}")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(receiver, status):
    receiver.answer = Answer(status, {"Location": receiver.url})
    assert post(receiver.url) == DeliveryOutcome(status=status, error=f"HTTP {status}: redirects are not followed")
    assert len(receiver.all()) == 1


@pytest.mark.parametrize("status", [400, 404, 410, 500])
def test_other_answers_are_failures(receiver, status):
    receiver.answer = Answer(status, {"Retry-After": "30"})
    assert post(receiver.url) == DeliveryOutcome(status=status, error=f"HTTP {status}")


@pytest.mark.parametrize("status", [429, 503])
def test_a_receiver_may_ask_for_a_rest(receiver, status):
    receiver.answer = Answer(status, {"retry-after": "30"})
    assert post(receiver.url) == DeliveryOutcome(status=status, error=f"HTTP {status}", retry_after_s=30.0)


def test_a_rest_is_asked_for_in_seconds_or_until_a_time():
    later = datetime.now(UTC) + timedelta(minutes=10)
    assert 590 < parse_retry_after(format_datetime(later, usegmt=True)) <= 600
    assert [parse_retry_after(text) for text in ("7", " 7 ", "Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 21 Oct 2015 07:28:00")] == [
        7,
        7,
        0,
        0,
    ]
    assert [parse_retry_after(text) for text in (None, "", "-7", "1.5", "soon", "9" * 400, "Wed, 99 Oct 2015 07:28:00 GMT")] == [
        None
    ] * 7


def test_nobody_listening_is_a_failure():
    with create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    outcome = post(f"http://127.0.0.1:{port}/")
    assert outcome.status is None
    assert "refused" in outcome.error


def test_a_private_address_is_never_connected_to(receiver):
    outcome = post(f"http://hooks.example:{receiver.port}/", "127.0.0.1", allowed=[])
    assert outcome == DeliveryOutcome(error=HOST_REFUSED)
    assert post(f"http://127.0.0.1:{receiver.port}/", allowed=[]).error == HOST_REFUSED
    assert post(f"http://hooks.example:{receiver.port}/", "127.0.0.1", "10.0.0.1").error is not None
    assert receiver.all() == []


def test_the_socket_goes_to_the_address_that_was_checked(receiver):
    """A host that is looked up twice is at a private address the second time: nobody may look twice."""
    looks = []

    def resolve(host, port):
        looks.append(host)
        return ["127.0.0.1"] if len(looks) == 1 else ["10.0.0.1"]

    policy = EgressPolicy(allow_http=True, allowed_networks=LOOPBACK, resolve=resolve)
    rebound = WebhookSender(policy=policy, timeout_s=5)
    url = f"http://hooks.example:{receiver.port}/"
    assert rebound.post(url, {}, b"{}") == DeliveryOutcome(status=204)
    assert looks == ["hooks.example"]
    assert rebound.post(url, {}, b"{}") == DeliveryOutcome(error=HOST_REFUSED)
    assert len(receiver.all()) == 1


def test_addresses_are_tried_in_turn(receiver):
    assert post(f"http://hooks.example:{receiver.port}/", "127.0.0.9", "127.0.0.1") == DeliveryOutcome(status=204)


@pytest.mark.skipif(not has_ipv6, reason="this machine has no IPv6")
def test_ipv6_addresses_go_with_brackets_in_the_url_alone():
    heard = []

    def answer(server):
        with server.accept()[0] as connection:
            heard.append(connection.recv(65536))
            connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    try:
        server = create_server(("::1", 0), family=AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with server:
        thread = threading.Thread(target=answer, args=(server,))
        thread.start()
        port = server.getsockname()[1]
        assert post(f"http://[::1]:{port}/") == DeliveryOutcome(status=204)
        thread.join()
    assert f"host: [::1]:{port}".encode() in heard[0].lower()


def test_proxies_of_the_environment_are_not_for_webhooks(receiver, monkeypatch):
    with receiving() as proxy:
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert post(receiver.url) == DeliveryOutcome(status=204)
        assert (len(receiver.all()), len(proxy.all())) == (1, 0)


def secured():
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(CERTIFICATE)
    names = []
    tls.sni_callback = lambda _, name, __: names.append(name)
    return tls, names


def test_tls_is_for_the_name_though_the_socket_is_for_the_address():
    tls, names = secured()
    trusting = ssl.create_default_context(cafile=CERTIFICATE)
    with receiving(tls) as receiver:
        assert post(f"https://hooks.example:{receiver.port}/", "127.0.0.1", tls=trusting) == DeliveryOutcome(status=204)
        other = post(f"https://other.example:{receiver.port}/", "127.0.0.1", tls=trusting)
        assert "not valid for 'other.example'" in other.error
        unknown = post(f"https://hooks.example:{receiver.port}/", "127.0.0.1")
        assert "certificate verify failed" in unknown.error.lower()
        assert names == ["hooks.example", "other.example", "hooks.example"]
        assert len(receiver.all()) == 1


def dripping(connection, piece, stop):
    try:
        while not stop.wait(0.05):
            connection.sendall(piece)
    except OSError:
        pass


@pytest.mark.parametrize(
    ("head", "outcome"),
    [
        (b"", DeliveryOutcome(error="no answer within 0.5 s")),
        (b"HTTP/1.1 200 OK\r\nX-Long: ", DeliveryOutcome(error="no answer within 0.5 s")),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n", DeliveryOutcome(status=200)),
    ],
)
def test_a_receiver_that_sends_a_byte_now_and_then_gains_nothing(head, outcome):
    stop = threading.Event()

    def answer(server):
        with server.accept()[0] as connection:
            connection.recv(65536)
            connection.sendall(head)
            if head:
                dripping(connection, b"x", stop)
            else:
                stop.wait(10)

    with create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer, args=(server,))
        thread.start()
        began = time.monotonic()
        assert post(f"http://127.0.0.1:{server.getsockname()[1]}/", timeout_s=0.5) == outcome
        assert 0.4 < time.monotonic() - began < 1.5
        stop.set()
        thread.join()


def test_a_handshake_that_hangs_ends_in_time():
    with create_server(("127.0.0.1", 0)) as server:
        outcome = post(f"https://hooks.example:{server.getsockname()[1]}/", "127.0.0.1", timeout_s=0.3)
    assert outcome == DeliveryOutcome(error="no answer within 0.3 s")


def test_of_a_long_answer_little_is_read(receiver):
    receiver.answer = Answer(200, body=b"x" * 50_000_000)
    assert post(receiver.url) == DeliveryOutcome(status=200)
    assert receiver.cut_off.wait(5)


@pytest.mark.parametrize("noise", [b"", b"hello\r\n\r\n", b"HTTP/1.1 99999 no\r\n\r\n", b"HTTP/1.1 101 Switching\r\n\r\n"])
def test_what_is_no_answer_is_a_failure(noise):
    def answer(server):
        with server.accept()[0] as connection:
            connection.recv(65536)
            connection.sendall(noise)

    with create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer, args=(server,))
        thread.start()
        assert post(f"http://127.0.0.1:{server.getsockname()[1]}/").error
        thread.join()


def test_the_receivers_of_these_tests_can_be_reached(receiver):
    """So that what is not received was not sent."""
    create_connection(("127.0.0.1", receiver.port), 1).close()

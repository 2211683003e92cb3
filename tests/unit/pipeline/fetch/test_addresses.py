"""Which addresses a row may lead to."""

from __future__ import annotations

import socket

import pytest

from pipeline.fetch.addresses import PrivateAddressError, is_public, public_socket, refuse_private_name

PRIVATE = [
    "127.0.0.1", "127.8.9.1", "0.0.0.0", "10.0.0.1", "172.16.5.4", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1",
    "192.0.0.192", "168.63.129.16", "::ffff:168.63.129.16", "192.88.99.1",
    "::1", "::", "fe80::1", "fe80::1%2", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1",
    "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b:1::8.8.8.8",
    "2002:7f00:1::", "2001:0:808:808::80ff:fffe",
]  # fmt: skip
PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::"]


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_of_this_machine_its_network_and_its_cloud_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_addresses_of_the_internet_are_public(address):
    assert is_public(address)


def test_a_socket_is_made_for_the_very_address_that_is_connected_to():
    public_socket((socket.AF_INET, socket.SOCK_STREAM, 6, "", ("8.8.8.8", 80))).close()

    with pytest.raises(PrivateAddressError) as caught:
        public_socket((socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80)))

    assert caught.value.address == "127.0.0.1"


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST.", "a.localhost", "127.0.0.1", "127.1", "0x7f000001", "2130706433", "017700000001",
             "::1", "fe80::1%eth0", "169.254.169.254", "%31%32%37.0.0.1"]
)  # fmt: skip
def test_behind_a_proxy_a_host_that_is_an_address_is_refused_in_any_way_of_writing_it(host):
    with pytest.raises(PrivateAddressError):
        refuse_private_name(host)


def test_behind_a_proxy_names_are_left_to_the_proxy():
    refuse_private_name("images.example")
    refuse_private_name("8.8.8.8")

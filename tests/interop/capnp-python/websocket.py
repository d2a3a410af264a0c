"""As much of RFC 6455 as reading a short answer takes."""

import asyncio
import base64
import os
import struct
import urllib.parse

PROTOCOL = "v5.channel.k8s.io"


async def collect(url, opened=lambda: None):
    """Opens the URL, calls `opened` once the server has sent something, which it does when the stream is open, and reads to
    the server's Close. Returns the bytes of each channel, and the close code."""
    address = urllib.parse.urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    key = base64.b64encode(os.urandom(16)).decode()
    head = [
        f"GET {address.path} HTTP/1.1",
        f"Host: {address.netloc}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {key}",
        f"Sec-WebSocket-Protocol: {PROTOCOL}",
    ]
    writer.write("\r\n".join([*head, "", ""]).encode())
    answer = (await reader.readuntil(b"\r\n\r\n")).decode()
    assert answer.startswith("HTTP/1.1 101 ") and PROTOCOL in answer, answer
    channels = {}
    try:
        while True:
            first, length = await reader.readexactly(2)
            assert length < 128, "a server does not mask"
            if length == 126:
                length = struct.unpack(">H", await reader.readexactly(2))[0]
            elif length == 127:
                length = struct.unpack(">Q", await reader.readexactly(8))[0]
            payload = await reader.readexactly(length)
            if first & 15 == 8:
                return channels, struct.unpack(">H", payload[:2])[0]
            assert first == 0x82, "whole binary messages"
            if not channels:
                opened()
            channels[payload[0]] = channels.get(payload[0], b"") + payload[1:]
    finally:
        writer.close()

package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"testing"

	"github.com/moby/spdystream/spdy"
)

// frames reads a file of ours with the library's framer and describes each frame.
func frames(t *testing.T, name string) (seen []string) {
	t.Helper()
	file, err := os.ReadFile("../../data/" + name)
	if err != nil {
		t.Fatal(err)
	}
	framer, err := spdy.NewFramer(io.Discard, bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	add := func(format string, values ...any) { seen = append(seen, fmt.Sprintf(format, values...)) }
	for {
		frame, err := framer.ReadFrame()
		if err == io.EOF {
			return seen
		}
		if err != nil {
			t.Fatalf("after %q: %v", seen, err)
		}
		switch frame := frame.(type) {
		case *spdy.SynStreamFrame:
			kind, port := frame.Headers.Get("streamtype"), frame.Headers.Get("port")
			add("syn %d %s %s flags %d", frame.StreamId, kind, port, frame.CFHeader.Flags)
		case *spdy.SynReplyFrame:
			add("reply %d with %d headers", frame.StreamId, len(frame.Headers))
		case *spdy.DataFrame:
			add("data %d %d bytes flags %d", frame.StreamId, len(frame.Data), frame.Flags)
		case *spdy.RstStreamFrame:
			add("reset %d status %d", frame.StreamId, frame.Status)
		case *spdy.PingFrame:
			add("ping %d", frame.Id)
		case *spdy.GoAwayFrame:
			add("goaway %d status %d", frame.LastGoodStreamId, frame.Status)
		case *spdy.WindowUpdateFrame:
			add("window %d %d", frame.StreamId, frame.DeltaWindowSize)
		default:
			add("%T", frame)
		}
	}
}

func expect(t *testing.T, seen []string, expected ...string) {
	t.Helper()
	if fmt.Sprintf("%q", seen) != fmt.Sprintf("%q", expected) {
		t.Errorf("\nseen     %q\nexpected %q", seen, expected)
	}
}

func TestTheLibraryReadsOurClient(t *testing.T) {
	expect(t, frames(t, "spdy_our_client.bin"),
		"syn 1 error 8080 flags 1", "syn 3 stdin 8080 flags 0", "syn 5 stdout 8080 flags 0",
		"ping 1", "ping 2",
		"data 3 32768 bytes flags 0", "data 3 232 bytes flags 0", "data 3 0 bytes flags 1",
		"goaway 0 status 0")
}

func TestTheLibraryReadsOurServer(t *testing.T) {
	expect(t, frames(t, "spdy_our_server.bin"),
		"reply 1 with 0 headers", "reply 3 with 0 headers", "reply 5 with 0 headers",
		"ping 2", "ping 1",
		"window 3 32768", "window 0 32768", "data 5 6 bytes flags 0",
		"reset 3 status 5", "data 5 0 bytes flags 1", "data 1 34 bytes flags 1",
		"goaway 5 status 0")
}

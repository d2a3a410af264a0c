package clientgo

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
)

// Ports of the pod: ../apiserver/serve.py.
const (
	echoPort   = 8000
	digestPort = 8001
	resetPort  = 8002
	zerosPort  = 8003
	nobody     = 8009
)

func (w way) dialer(t *testing.T) httpstream.Dialer {
	t.Helper()
	url := w.url(t, "portforward", url.Values{})
	transport, upgrader := must2(spdy.RoundTripperFor(config()))(t)
	plain := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, "POST", url)
	if w.spdy {
		return plain
	}
	tunnel := must(portforward.NewSPDYOverWebsocketDialer(url, config()))(t)
	if w.fallback {
		return portforward.NewFallbackDialer(tunnel, plain, falls)
	}
	return tunnel
}

// forward is a port forward that runs, of the ports it was given, each behind a local one.
type forward struct {
	*testing.T
	local map[uint16]uint16
	stop  chan struct{}
	done  chan error
}

func (w way) forward(t *testing.T, ports ...int) *forward {
	t.Helper()
	f := &forward{t, map[uint16]uint16{}, make(chan struct{}), make(chan error, 1)}
	var wanted []string
	for _, port := range ports {
		wanted = append(wanted, fmt.Sprintf(":%d", port))
	}
	ready := make(chan struct{})
	forwarder := must(portforward.New(w.dialer(t), wanted, f.stop, ready, io.Discard, io.Discard))(t)
	go func() { f.done <- forwarder.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-f.done:
		t.Fatal(err)
	}
	for _, port := range must(forwarder.GetPorts())(t) {
		f.local[port.Remote] = port.Local
	}
	return f
}

func (f *forward) dial(port uint16) *net.TCPConn {
	f.Helper()
	connection := must(net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", f.local[port])))(f.T)
	f.Cleanup(func() { _ = connection.Close() })
	return connection.(*net.TCPConn)
}

// end stops the forward, which must have run to here.
func (f *forward) end() {
	f.Helper()
	select {
	case err := <-f.done:
		f.Fatal("the forward has ended:", err)
	default:
	}
	close(f.stop)
	check(f.T, within(f.T, "the end of the forward", f.done))
}

// exchange sends and ends, and returns the answer to its end.
func exchange(connection *net.TCPConn, data []byte) (string, error) {
	sent := make(chan error, 1)
	go func() {
		if _, err := connection.Write(data); err != nil {
			sent <- err
			return
		}
		sent <- connection.CloseWrite()
	}()
	answer, err := io.ReadAll(connection)
	if err == nil {
		err = <-sent
	}
	return string(answer), err
}

func TestForwardCarriesConnectionsSideBySide(t *testing.T) {
	t.Parallel()
	everyWay(t, func(t *testing.T, w way) {
		f := w.forward(t, echoPort, digestPort)
		first, second := f.dial(echoPort), f.dial(digestPort)
		must(first.Write([]byte("hello")))(t)
		answer := make([]byte, 5)
		must(io.ReadFull(first, answer))(t)
		equal(t, "the echo", string(answer), "hello")
		// The end of what is sent arrives as such, and the answer to it comes back.
		equal(t, "the digest", must(exchange(second, numbers()))(t), digest(numbers()))
		echo := must(exchange(first, numbers()))(t)
		equal(t, "the digest of the echo", digest([]byte(echo)), digest(numbers()))
		f.end()
	})
}

func TestForwardCarriesManyConnections(t *testing.T) {
	t.Parallel()
	everyWay(t, func(t *testing.T, w way) {
		f := w.forward(t, echoPort)
		done := make(chan error)
		const count = 30
		for i := range count {
			connection := f.dial(echoPort)
			go func() {
				data := strings.Repeat(fmt.Sprintf("%d ", i), 100_000)
				echo, err := exchange(connection, []byte(data))
				if err == nil && echo != data {
					err = fmt.Errorf("%d bytes come back as %d others", len(data), len(echo))
				}
				done <- err
			}()
		}
		for range count {
			check(t, within(t, "all the echoes", done))
		}
		f.end()
	})
}

func TestForwardDeliversABigAnswerAndItsEnd(t *testing.T) {
	t.Parallel()
	everyWay(t, func(t *testing.T, w way) {
		f := w.forward(t, zerosPort)
		sum := sha256.New()
		equal(t, "the length", must(io.Copy(sum, f.dial(zerosPort)))(t), 10<<20)
		equal(t, "the digest", hex.EncodeToString(sum.Sum(nil)), digest(make([]byte, 10<<20)))
		// Given up in the middle, it takes nothing along.
		for range 5 {
			connection := f.dial(zerosPort)
			must(io.ReadFull(connection, make([]byte, 100_000)))(t)
			check(t, connection.Close())
		}
		equal(t, "the length", must(io.Copy(io.Discard, f.dial(zerosPort)))(t), 10<<20)
		f.end()
	})
}

func TestForwardOutlivesAReset(t *testing.T) {
	t.Parallel()
	everyWay(t, func(t *testing.T, w way) {
		f := w.forward(t, echoPort, resetPort)
		beside := f.dial(echoPort)
		for range 3 {
			connection := f.dial(resetPort)
			must(connection.Write([]byte("a good deal")))(t)
			if answer, _ := io.ReadAll(connection); len(answer) > 0 {
				t.Errorf("an answer %q", answer)
			}
		}
		equal(t, "the echo beside it", must(exchange(beside, []byte("hello")))(t), "hello")
		equal(t, "the echo after it", must(exchange(f.dial(echoPort), []byte("hello")))(t), "hello")
		f.end()
	})
}

func TestForwardToAPortOfNobodyIsReported(t *testing.T) {
	t.Parallel()
	everyWay(t, func(t *testing.T, w way) {
		f := w.forward(t, nobody)
		answer, _ := io.ReadAll(f.dial(nobody))
		equal(t, "the answer", string(answer), "")
		// Its own rule: a failure that it is told of ends all.
		err := within(t, "the end of the forward", f.done)
		if err == nil || !strings.Contains(err.Error(), "lost connection to pod") {
			t.Errorf("the client ends with %v", err)
		}
		for line := range strings.Lines(reported.String()) {
			if strings.Contains(line, fmt.Sprintf("forwarding %d -> %d", f.local[nobody], nobody)) {
				contains(t, line, fmt.Sprintf("error forwarding port %d to pod", nobody))
				contains(t, line, "connection refused")
				return
			}
		}
		t.Error("nothing is reported in", reported.String())
	})
}

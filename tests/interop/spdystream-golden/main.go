// Records what the Go library behind kubectl, the kubelet and CRI-O writes on SPDY connections.
//
//	go run . ../../data
//
// Both ends are github.com/moby/spdystream; each file is what one end wrote from the first byte to the last. The steps wait
// for each other, so that a recording comes out the same each time.
package main

import (
	"bytes"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"

	"github.com/moby/spdystream"
)

// recorder keeps what is written to a connection.
type recorder struct {
	net.Conn
	mutex   sync.Mutex
	written bytes.Buffer
}

func (r *recorder) Write(data []byte) (int, error) {
	r.mutex.Lock()
	r.written.Write(data)
	r.mutex.Unlock()
	return r.Conn.Write(data)
}

func (r *recorder) bytes() []byte {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	return bytes.Clone(r.written.Bytes())
}

// session is a client and a server on a pipe; the server accepts every stream.
type session struct {
	clientEnd, serverEnd *recorder
	client, server       *spdystream.Connection
	accepted             chan *spdystream.Stream
}

func start() *session {
	a, b := net.Pipe()
	s := &session{
		clientEnd: &recorder{Conn: a}, serverEnd: &recorder{Conn: b},
		accepted: make(chan *spdystream.Stream, 1),
	}
	s.client = must(spdystream.NewConnection(s.clientEnd, false))
	s.server = must(spdystream.NewConnection(s.serverEnd, true))
	go s.client.Serve(spdystream.NoOpStreamHandler)
	go s.server.Serve(func(stream *spdystream.Stream) {
		check(stream.SendReply(http.Header{}, false))
		s.accepted <- stream
	})
	return s
}

// pair is the two ends of one stream.
type pair struct{ client, server *spdystream.Stream }

func (s *session) open(headers map[string]string) pair {
	header := http.Header{}
	for name, value := range headers {
		header.Set(name, value)
	}
	stream := must(s.client.CreateStream(header, nil, false))
	check(stream.Wait())
	return pair{stream, <-s.accepted}
}

func send(from, to *spdystream.Stream, text string) {
	must(from.Write([]byte(text)))
	received := make([]byte, len(text))
	must(io.ReadFull(to, received))
}

func end(from, to *spdystream.Stream) {
	check(from.Close())
	if _, err := to.Read(make([]byte, 1)); err != io.EOF {
		log.Fatal("no end: ", err)
	}
}

// exec is an exec session with everything that one can have.
func exec() *session {
	s := start()
	streams := map[string]pair{}
	for _, kind := range []string{"error", "stdin", "stdout", "stderr", "resize"} {
		streams[kind] = s.open(map[string]string{"streamType": kind})
	}
	must(s.client.Ping())
	must(s.server.Ping())
	stdin, stdout, status := streams["stdin"], streams["stdout"], streams["error"]
	send(stdin.client, stdin.server, "hi\n")
	send(streams["resize"].client, streams["resize"].server, "{\"Width\":80,\"Height\":24}\n")
	end(stdin.client, stdin.server)
	send(stdout.server, stdout.client, "hello\n")
	send(streams["stderr"].server, streams["stderr"].client, "oops\n")
	send(status.server, status.client, `{"metadata":{},"status":"Success"}`)
	for _, kind := range []string{"stdout", "stderr", "error"} {
		end(streams[kind].server, streams[kind].client)
	}
	check(streams["resize"].server.Reset())
	check(stdout.client.Reset())
	return s
}

func main() {
	folder := os.Args[1]
	save := func(name string, data []byte) {
		check(os.WriteFile(filepath.Join(folder, name), data, 0o644))
		log.Print(name, ": ", len(data), " bytes")
	}

	s := exec()
	check(s.client.Close())
	save("spdy_go_exec_client.bin", s.clientEnd.bytes())

	s = exec()
	check(s.server.Close())
	save("spdy_go_exec_server.bin", s.serverEnd.bytes())

	s = start()
	headers := map[string]string{"streamType": "error", "port": "8080", "requestID": "0"}
	failure := s.open(headers)
	end(failure.client, failure.server)
	headers["streamType"] = "data"
	data := s.open(headers)
	send(data.client, data.server, "GET / HTTP/1.0\r\n\r\n")
	end(data.client, data.server)
	check(s.client.Close())
	save("spdy_go_forward_client.bin", s.clientEnd.bytes())
}

func must[T any](value T, err error) T {
	check(err)
	return value
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// Package clientgo uses a daemon's streams with client-go. What it talks to is described in ../apiserver/serve.py.
package clientgo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/streaming/pkg/httpstream"
)

// patience is how long a test waits for something that is to happen.
const patience = 60 * time.Second

var api = os.Getenv("POD_API")

func TestMain(m *testing.M) {
	if api == "" {
		fmt.Fprintln(os.Stderr, "run by the script `run`, which starts what is tested")
		os.Exit(1)
	}
	runtime.ErrorHandlers = []runtime.ErrorHandler{report}
	os.Exit(m.Run())
}

// reported is what the library had to say beside its results: kubectl shows that.
var reported buffer

func report(_ context.Context, err error, message string, _ ...any) {
	fmt.Fprintln(&reported, message, err)
}

// names makes each container's id unlike the others'.
var names atomic.Int32

// container runs a command in a new container of the pod.
func container(t *testing.T, stdin, tty bool, command ...string) string {
	t.Helper()
	id := fmt.Sprintf("c%d", names.Add(1))
	query := url.Values{"command": command, "stdin": {strconv.FormatBool(stdin)}, "tty": {strconv.FormatBool(tty)}}
	ask(t, "POST", "/containers/"+id+"?"+query.Encode())
	return id
}

func ask(t *testing.T, method, path string) string {
	t.Helper()
	request := must(http.NewRequestWithContext(deadline(t), method, api+path, nil))(t)
	response := must(http.DefaultClient.Do(request))(t)
	defer response.Body.Close()
	body := string(must(io.ReadAll(response.Body))(t))
	if response.StatusCode != http.StatusOK {
		t.Fatalf("%s %s: %s: %s", method, path, response.Status, body)
	}
	return body
}

// way is how a client gets at the daemon.
type way struct {
	name string
	// direct is without an API server between, as crictl: with the URL that the daemon gave out.
	direct bool
	// old is with an API server that knows no WebSockets.
	old  bool
	spdy bool
	// fallback tries WebSocket first.
	fallback bool
}

var ways = []way{
	{name: "websocket"},
	{name: "spdy", spdy: true},
	{name: "fallback", fallback: true},
	{name: "fallback to spdy", fallback: true, old: true},
	{name: "crictl websocket", direct: true},
	{name: "crictl spdy", direct: true, spdy: true},
}

// everyWay runs a test once for each.
func everyWay(t *testing.T, test func(t *testing.T, way way)) {
	t.Helper()
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			t.Parallel()
			test(t, way)
		})
	}
}

// url is where a client of the kind finds its stream.
func (w way) url(t *testing.T, kind string, query url.Values) *url.URL {
	t.Helper()
	text := ""
	switch {
	case w.direct:
		text = ask(t, "GET", "/cri/"+kind+"?"+query.Encode())
	case w.old:
		text = api + "/old/api/v1/namespaces/default/pods/pod/" + kind + "?" + query.Encode()
	default:
		text = api + "/api/v1/namespaces/default/pods/pod/" + kind + "?" + query.Encode()
	}
	return must(url.Parse(text))(t)
}

// config is crictl's, which verifies no certificates; nothing of it matters where there are none.
func config() *rest.Config {
	return &rest.Config{TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
}

// falls is kubectl's rule for the second try.
func falls(err error) bool {
	return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
}

// numbers is about 12 MB of text, which `seq 1 1700000` prints as well.
var numbers = sync.OnceValue(func() []byte {
	var text bytes.Buffer
	for i := 1; i <= 1700000; i++ {
		text.WriteString(strconv.Itoa(i))
		text.WriteByte('\n')
	}
	return text.Bytes()
})

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// buffer can be written by one task while another looks at it.
type buffer struct {
	lock sync.Mutex
	data bytes.Buffer
}

func (b *buffer) Write(data []byte) (int, error) {
	b.lock.Lock()
	defer b.lock.Unlock()
	return b.data.Write(data)
}

func (b *buffer) String() string {
	b.lock.Lock()
	defer b.lock.Unlock()
	return b.data.String()
}

func (b *buffer) shows(t *testing.T, text string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%q to be shown", text), func() bool { return strings.Contains(b.String(), text) })
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited %v in vain: %s", patience, what)
		}
	}
}

// within waits for what must come by itself.
func within[T any](t *testing.T, what string, values <-chan T) T {
	t.Helper()
	select {
	case value := <-values:
		return value
	case <-time.After(patience):
		t.Fatalf("waited %v in vain: %s", patience, what)
		panic("not reached")
	}
}

func must[T any](value T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		check(t, err)
		return value
	}
}

func must2[A, B any](a A, b B, err error) func(*testing.T) (A, B) {
	return func(t *testing.T) (A, B) {
		t.Helper()
		check(t, err)
		return a, b
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func equal[T comparable](t *testing.T, what string, is, expected T) {
	t.Helper()
	if is != expected {
		t.Errorf("%s: is %#v, expected %#v", what, is, expected)
	}
}

func contains(t *testing.T, text, part string) {
	t.Helper()
	if !strings.Contains(text, part) {
		t.Errorf("%q does not contain %q", text, part)
	}
}

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

package interop

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast.example/interop/conmon"
	"holdfast.example/interop/monitor"
)

const (
	ipc  = conmon.Conmon_Namespace_ipc
	pid  = conmon.Conmon_Namespace_pid
	net  = conmon.Conmon_Namespace_net
	user = conmon.Conmon_Namespace_user
	uts  = conmon.Conmon_Namespace_uts
)

// answerOrder is that of the five entries of every answer.
var answerOrder = []struct {
	kind conmon.Conmon_Namespace
	name string
}{{ipc, "ipc"}, {pid, "pid"}, {net, "net"}, {user, "user"}, {uts, "uts"}}

func pod(t *testing.T, s *sandbox) string {
	t.Helper()
	return filepath.Base(filepath.Dir(s.dir)) + "-" + itoa(s.Pid)
}

func TestNoNamespacesAtAllCanBeAskedFor(t *testing.T) {
	t.Parallel()
	s := newSandbox(t)
	must(s.CreateNamespaces(deadline(t), pod(t, s), filepath.Join(s.dir, "ns"), nil, nil, nil))(t)
}

func TestNamespacesNeedAPod(t *testing.T) {
	t.Parallel()
	s := newSandbox(t)
	namespaces, err := s.CreateNamespaces(deadline(t), "", filepath.Join(s.dir, "ns"), nil, nil, nil)
	if err == nil || namespaces != nil {
		t.Errorf("namespaces without a pod: %v, %v", namespaces, err)
	}
}

func TestFourNamespacesArePinnedBelowVarRun(t *testing.T) {
	t.Parallel()
	s := newSandbox(t)
	id := pod(t, s)
	namespaces := must(s.CreateNamespaces(deadline(t), id, "/var/run", []conmon.Conmon_Namespace{ipc, net, pid, uts}, nil, nil))(t)
	pinned(t, namespaces, "/var/run", id, 0o444)
	for _, namespace := range namespaces {
		// Of a namespace that nobody asked for, the host's is pinned.
		equal(t, namespace.Path+" is the host's", isHosts(t, namespace), namespace.Type == user)
	}
	check(t, s.Shutdown())
	s.ended = true
	for _, namespace := range namespaces {
		if exists(namespace.Path) {
			t.Errorf("%s is left", namespace.Path)
		}
	}
}

func TestAllFiveNamespacesWithMappings(t *testing.T) {
	t.Parallel()
	s := newSandbox(t)
	base := filepath.Join(s.dir, "ns")
	kinds := []conmon.Conmon_Namespace{ipc, net, pid, user, uts}
	namespaces := must(s.CreateNamespaces(deadline(t), pod(t, s), base, kinds, []string{"0 0 1"}, []string{"0 0 1"}))(t)
	pinned(t, namespaces, base, pod(t, s), 0o444)
	for _, namespace := range namespaces {
		equal(t, namespace.Path+" is the host's", isHosts(t, namespace), false)
	}
}

func TestAUserNamespaceNeedsMappings(t *testing.T) {
	t.Parallel()
	s := newSandbox(t)
	namespaces, err := s.CreateNamespaces(deadline(t), pod(t, s), filepath.Join(s.dir, "ns"), []conmon.Conmon_Namespace{user}, nil, nil)
	if err == nil || namespaces != nil {
		t.Errorf("a user namespace without mappings: %v, %v", namespaces, err)
	}
}

func TestEachPodHasNamespacesOfItsOwn(t *testing.T) {
	t.Parallel()
	s := newSandbox(t)
	base := filepath.Join(s.dir, "ns")
	first := must(s.CreateNamespaces(deadline(t), "pod.one", base, []conmon.Conmon_Namespace{ipc}, nil, nil))(t)
	second := must(s.CreateNamespaces(deadline(t), "pod.two", base, []conmon.Conmon_Namespace{ipc}, nil, nil))(t)
	pinned(t, first, base, "pod.one", 0o444)
	pinned(t, second, base, "pod.two", 0o444)
	if inode(t, first[0].Path) == inode(t, second[0].Path) {
		t.Error("two pods share an IPC namespace")
	}
}

func pinned(t *testing.T, namespaces []monitor.Namespace, base, id string, mode os.FileMode) {
	t.Helper()
	if len(namespaces) != len(answerOrder) {
		t.Fatalf("%d entries", len(namespaces))
	}
	for i, expected := range answerOrder {
		namespace := namespaces[i]
		equal(t, "the type", namespace.Type, expected.kind)
		equal(t, "the path", namespace.Path, filepath.Join(base, expected.name+"ns", id))
		info := must(os.Stat(namespace.Path))(t)
		equal(t, "is a directory", info.IsDir(), false)
		equal(t, "size", info.Size(), 0)
		equal(t, "mode", info.Mode().Perm(), mode)
		var system unix.Statfs_t
		check(t, unix.Statfs(namespace.Path, &system))
		equal(t, "file system of "+namespace.Path, system.Type, unix.NSFS_MAGIC)
	}
}

func isHosts(t *testing.T, namespace monitor.Namespace) bool {
	t.Helper()
	for _, kind := range answerOrder {
		if kind.kind == namespace.Type {
			return inode(t, namespace.Path) == inode(t, "/proc/self/ns/"+kind.name)
		}
	}
	t.Fatal("an unknown type")
	return false
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	return must(os.Stat(path))(t).Sys().(*syscall.Stat_t).Ino
}

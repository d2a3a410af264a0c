package monitor

import (
	"fmt"
	"net"
	"path/filepath"
	"syscall"
)

// dial connects to a socket whose path may be longer than an address can hold: only the file's name has to be short.
func dial(network, path string) (*net.UnixConn, error) {
	dir, err := syscall.Open(filepath.Dir(path), syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the directory of %s: %w", path, err)
	}
	defer func() { _ = syscall.Close(dir) }()
	short := fmt.Sprintf("/proc/self/fd/%d/%s", dir, filepath.Base(path))
	return net.DialUnix(network, nil, &net.UnixAddr{Name: short, Net: network})
}

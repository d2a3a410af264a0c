package monitor

import (
	"context"
	"fmt"
	"path/filepath"

	capnp "capnproto.org/go/capnp/v3"
	"capnproto.org/go/capnp/v3/rpc"

	"holdfast.example/interop/conmon"
)

// Version is what the monitor says of itself.
type Version struct {
	ProcessID                                                                     uint32
	Version, Tag, Commit, BuildDate, Target, RustVersion, CargoVersion, CargoTree string
}

// LogDriver is one destination of a container's output.
type LogDriver struct {
	Type    conmon.Conmon_LogDriver_Type
	Path    string
	MaxSize uint64
}

// Container is a container to create.
type Container struct {
	ID, Bundle                          string
	Terminal, Stdin                     bool
	ExitPaths, OOMExitPaths             []string
	LogDrivers                          []LogDriver
	CleanupCmd, GlobalArgs, CommandArgs []string
	EnvVars                             map[string]string
	AdditionalFds, LeakFds              []uint64
}

// ExecResult is the outcome of a command that was waited for.
type ExecResult struct {
	ExitCode       int32
	Stdout, Stderr string
	TimedOut       bool
}

// Version asks who answers; verbose adds the tree of dependencies.
func (m *Monitor) Version(ctx context.Context, verbose bool) (version Version, err error) {
	err = m.call(func(api conmon.Conmon) error {
		future, release := api.Version(ctx, func(params conmon.Conmon_version_Params) error {
			request, err := params.NewRequest()
			request.SetVerbose(verbose)
			return err
		})
		defer release()
		results, err := future.Struct()
		if err != nil {
			return err
		}
		response, err := results.Response()
		if err != nil {
			return err
		}
		version.ProcessID = response.ProcessId()
		return texts(
			text{&version.Version, response.Version}, text{&version.Tag, response.Tag},
			text{&version.Commit, response.Commit}, text{&version.BuildDate, response.BuildDate},
			text{&version.Target, response.Target}, text{&version.RustVersion, response.RustVersion},
			text{&version.CargoVersion, response.CargoVersion}, text{&version.CargoTree, response.CargoTree},
		)
	})
	return version, err
}

// CreateContainer answers the pid of the container's first process.
func (m *Monitor) CreateContainer(ctx context.Context, container Container) (pid uint32, err error) {
	err = m.call(func(api conmon.Conmon) error {
		future, release := api.CreateContainer(ctx, func(params conmon.Conmon_createContainer_Params) error {
			request, err := params.NewRequest()
			if err != nil {
				return err
			}
			return container.write(request)
		})
		defer release()
		results, err := future.Struct()
		if err != nil {
			return err
		}
		response, err := results.Response()
		pid = response.ContainerPid()
		return err
	})
	return pid, err
}

// ExecSync runs a command in a container and waits for its end; a timeout of 0 s is none.
func (m *Monitor) ExecSync(ctx context.Context, id string, seconds uint64, terminal bool, command ...string) (result ExecResult, err error) {
	err = m.call(func(api conmon.Conmon) error {
		future, release := api.ExecSyncContainer(ctx, func(params conmon.Conmon_execSyncContainer_Params) error {
			request, err := params.NewRequest()
			if err != nil {
				return err
			}
			request.SetTimeoutSec(seconds)
			request.SetTerminal(terminal)
			request.SetCgroupManager(conmon.Conmon_CgroupManager_cgroupfs)
			return first(request.SetId(id), list(command, request.NewCommand))
		})
		defer release()
		results, err := future.Struct()
		if err != nil {
			return err
		}
		response, err := results.Response()
		if err != nil {
			return err
		}
		result.ExitCode, result.TimedOut = response.ExitCode(), response.TimedOut()
		stdout, err := response.Stdout()
		if err != nil {
			return err
		}
		stderr, err := response.Stderr()
		result.Stdout, result.Stderr = string(stdout), string(stderr)
		return err
	})
	return result, err
}

// ReopenLog makes the monitor use a new file in place of one that was renamed.
func (m *Monitor) ReopenLog(ctx context.Context, id string) error {
	return m.call(func(api conmon.Conmon) error {
		future, release := api.ReopenLogContainer(ctx, func(params conmon.Conmon_reopenLogContainer_Params) error {
			request, err := params.NewRequest()
			return first(err, request.SetId(id))
		})
		defer release()
		_, err := future.Struct()
		return err
	})
}

// SetWindowSize tells a container's terminal how large its window is.
func (m *Monitor) SetWindowSize(ctx context.Context, id string, width, height uint16) error {
	return m.call(func(api conmon.Conmon) error {
		future, release := api.SetWindowSizeContainer(ctx, func(params conmon.Conmon_setWindowSizeContainer_Params) error {
			request, err := params.NewRequest()
			request.SetWidth(width)
			request.SetHeight(height)
			return first(err, request.SetId(id))
		})
		defer release()
		_, err := future.Struct()
		return err
	})
}

// Exec describes a command whose streams a client will connect to.
type Exec struct {
	ID                         string
	Command                    []string
	Tty, Stdin, Stdout, Stderr bool
}

// ServeExec answers the URL at which the command will run.
func (m *Monitor) ServeExec(ctx context.Context, exec Exec) (url string, err error) {
	err = m.call(func(api conmon.Conmon) error {
		future, release := api.ServeExecContainer(ctx, func(params conmon.Conmon_serveExecContainer_Params) error {
			request, err := params.NewRequest()
			if err != nil {
				return err
			}
			request.SetTty(exec.Tty)
			request.SetStdin(exec.Stdin)
			request.SetStdout(exec.Stdout)
			request.SetStderr(exec.Stderr)
			request.SetCgroupManager(conmon.Conmon_CgroupManager_cgroupfs)
			return first(request.SetId(exec.ID), list(exec.Command, request.NewCommand))
		})
		defer release()
		results, err := future.Struct()
		if err != nil {
			return err
		}
		response, err := results.Response()
		if err != nil {
			return err
		}
		url, err = response.Url()
		return err
	})
	return url, err
}

// ServeAttach answers the URL of a container's own streams.
func (m *Monitor) ServeAttach(ctx context.Context, id string, stdin, stdout, stderr bool) (url string, err error) {
	err = m.call(func(api conmon.Conmon) error {
		future, release := api.ServeAttachContainer(ctx, func(params conmon.Conmon_serveAttachContainer_Params) error {
			request, err := params.NewRequest()
			request.SetStdin(stdin)
			request.SetStdout(stdout)
			request.SetStderr(stderr)
			return first(err, request.SetId(id))
		})
		defer release()
		results, err := future.Struct()
		if err != nil {
			return err
		}
		response, err := results.Response()
		if err != nil {
			return err
		}
		url, err = response.Url()
		return err
	})
	return url, err
}

// call uses the shared connection, and drops it when the call fails, as engines' clients do.
func (m *Monitor) call(method func(conmon.Conmon) error) error {
	api, err := m.connect()
	if err != nil {
		return err
	}
	defer api.Release()
	if err := method(api); err != nil {
		m.Close()
		return fmt.Errorf("create result: %w", err)
	}
	return nil
}

func (m *Monitor) connect() (conmon.Conmon, error) {
	m.lock.Lock()
	defer m.lock.Unlock()
	if m.conn == nil {
		socket, err := dial("unix", filepath.Join(m.RunDir, "conmon.sock"))
		if err != nil {
			return conmon.Conmon{}, err
		}
		m.conn = rpc.NewConn(rpc.NewStreamTransport(socket), nil)
		// Not waited for: the first call goes to the promised answer of the bootstrap.
		m.api = conmon.Conmon(m.conn.Bootstrap(context.Background()))
	}
	return m.api.AddRef(), nil
}

func (c *Container) write(request conmon.Conmon_CreateContainerRequest) error {
	request.SetTerminal(c.Terminal)
	request.SetStdin(c.Stdin)
	request.SetCgroupManager(conmon.Conmon_CgroupManager_cgroupfs)
	// Always there, if only empty: so do engines' clients.
	drivers, err := request.NewLogDrivers(int32(len(c.LogDrivers)))
	if err != nil {
		return err
	}
	for i, driver := range c.LogDrivers {
		drivers.At(i).SetType(driver.Type)
		drivers.At(i).SetMaxSize(driver.MaxSize)
		if err := drivers.At(i).SetPath(driver.Path); err != nil {
			return err
		}
	}
	return first(
		request.SetId(c.ID),
		request.SetBundlePath(c.Bundle),
		list(c.ExitPaths, request.NewExitPaths),
		list(c.OOMExitPaths, request.NewOomExitPaths),
		list(c.CleanupCmd, request.NewCleanupCmd),
		list(c.GlobalArgs, request.NewGlobalArgs),
		list(c.CommandArgs, request.NewCommandArgs),
		pairs(c.EnvVars, request.NewEnvVars),
		slots(c.AdditionalFds, request.NewAdditionalFds),
		slots(c.LeakFds, request.NewLeakFds),
	)
}

// An empty list is left out of the message, as engines' clients leave it out.

func list(items []string, make func(int32) (capnp.TextList, error)) error {
	if len(items) == 0 {
		return nil
	}
	list, err := make(int32(len(items)))
	if err != nil {
		return err
	}
	for i, item := range items {
		err = first(err, list.Set(i, item))
	}
	return err
}

func slots(items []uint64, make func(int32) (capnp.UInt64List, error)) error {
	if len(items) == 0 {
		return nil
	}
	list, err := make(int32(len(items)))
	if err != nil {
		return err
	}
	for i, item := range items {
		list.Set(i, item)
	}
	return nil
}

func pairs(items map[string]string, make func(int32) (conmon.Conmon_TextTextMapEntry_List, error)) error {
	if len(items) == 0 {
		return nil
	}
	list, err := make(int32(len(items)))
	if err != nil {
		return err
	}
	i := 0
	for key, value := range items {
		err = first(err, list.At(i).SetKey(key), list.At(i).SetValue(value))
		i++
	}
	return err
}

type text struct {
	into *string
	from func() (string, error)
}

func texts(all ...text) (err error) {
	for _, one := range all {
		if *one.into, err = one.from(); err != nil {
			return err
		}
	}
	return nil
}

func first(errors ...error) error {
	for _, err := range errors {
		if err != nil {
			return err
		}
	}
	return nil
}

package interop

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"holdfast.example/interop/monitor"
)

// Strict SemVer: a client that cannot parse the version fails the call.
var semver = regexp.MustCompile(`^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?$`)

func TestASecondNewFindsTheSameMonitor(t *testing.T) {
	t.Parallel()
	s := newSandbox(t)
	if s.Pid <= 0 || exists(filepath.Join(s.RunDir, "pidfile")) {
		t.Errorf("pid %d, pidfile there: %v", s.Pid, exists(filepath.Join(s.RunDir, "pidfile")))
	}
	// All its options are ignored: the monitor is there.
	second := must(monitor.New(t.Context(), monitor.Options{RunDir: s.RunDir, Program: "/does/not/exist"}))(t)
	defer second.Close()
	equal(t, "the pid that a second client finds", second.Pid, s.Pid)
	t.Logf("VmRSS %d KB", s.rss())
}

func TestABinaryInstalledAsConmonrsIsFoundInThePath(t *testing.T) {
	dir := t.TempDir()
	for name, install := range map[string]func(from, to string) error{
		"symlink": os.Symlink,
		"copy": func(from, to string) error {
			content, err := os.ReadFile(from)
			if err != nil {
				return err
			}
			return os.WriteFile(to, content, 0o755)
		},
	} {
		t.Run(name, func(t *testing.T) {
			bin := filepath.Join(dir, name)
			check(t, os.Mkdir(bin, 0o755))
			check(t, install(os.Getenv("HOLDFAST_BIN"), filepath.Join(bin, "conmonrs")))
			t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
			s := newSandbox(t, func(options *monitor.Options) { options.Program = "" })
			comm := must(os.ReadFile(filepath.Join("/proc", itoa(s.Pid), "comm")))(t)
			equal(t, "the name of the process", strings.TrimSpace(string(comm)), "conmonrs")
			s.run("ls", bundle{args: []string{"ls"}})
			equal(t, "the exit file", s.waitExit("ls"), "0")
		})
	}
}

func TestVersionTellsAboutTheBuildAndVerboseAlsoItsDependencies(t *testing.T) {
	t.Parallel()
	s := newSandbox(t)
	for _, verbose := range []bool{false, true} {
		version := must(s.Version(deadline(t), verbose))(t)
		equal(t, "processId", int(version.ProcessID), s.Pid)
		for name, text := range map[string]string{
			"commit": version.Commit, "buildDate": version.BuildDate, "target": version.Target,
			"rustVersion": version.RustVersion, "cargoVersion": version.CargoVersion,
		} {
			if text == "" {
				t.Errorf("%s is empty", name)
			}
		}
		if !semver.MatchString(version.Version) {
			t.Errorf("version %q is not SemVer", version.Version)
		}
		equal(t, "there is a tree of dependencies", version.CargoTree != "", verbose)
	}
}

func TestVersionJSONIsAllThatIsPrinted(t *testing.T) {
	t.Parallel()
	for _, detail := range []string{"", "=full"} {
		output := must(exec.Command(os.Getenv("HOLDFAST_BIN"), "--version-json"+detail).CombinedOutput())(t)
		var version struct {
			Verbose                      *bool
			Version, Tag, Commit, Target *string
			BuildDate                    *string `json:"build_date"`
			RustVersion                  *string `json:"rust_version"`
			CargoVersion                 *string `json:"cargo_version"`
			CargoTree                    *string `json:"cargo_tree"`
		}
		decoder := json.NewDecoder(strings.NewReader(string(output)))
		decoder.DisallowUnknownFields()
		check(t, decoder.Decode(&version))
		if decoder.More() || version.Verbose == nil || version.Tag == nil || version.CargoTree == nil || !semver.MatchString(*version.Version) {
			t.Errorf("not as it should be: %s", output)
		}
	}
}

func TestAnUnknownOptionIsNamedSoThatClientsKnowAnOldMonitor(t *testing.T) {
	t.Parallel()
	output, err := exec.Command(os.Getenv("HOLDFAST_BIN"), "--no-such-option").CombinedOutput()
	if err == nil {
		t.Error("the exit code is 0")
	}
	contains(t, string(output), "error: unexpected argument")
}

func TestAMonitorThatCannotStartIsToldByItsExitCode(t *testing.T) {
	t.Parallel()
	options := sandboxOptions(t, t.TempDir())
	options.Runtime = "/does/not/exist"
	if _, err := monitor.New(t.Context(), options); err == nil {
		t.Error("New succeeds without a runtime")
	}
}

func TestSettingsReachTheMonitorThroughItsStartersEnvironment(t *testing.T) {
	t.Setenv("HOLDFAST_STREAM_ADDRESS", "127.0.0.2")
	// The command line wins.
	t.Setenv("CONMON_RUNTIME", "/does/not/exist")
	s := newSandbox(t)
	s.run("a", idle())
	url := must(s.ServeExec(deadline(t), monitor.Exec{ID: "a", Command: []string{"true"}, Stdout: true}))(t)
	if !strings.HasPrefix(url, "http://127.0.0.2:") {
		t.Errorf("the URL is %s", url)
	}
}

func TestAWrongSettingIsSeenAtOnceByWhoAsksForTheVersion(t *testing.T) {
	t.Setenv("HOLDFAST_LOG_STALL", "soon")
	output, err := exec.Command(os.Getenv("HOLDFAST_BIN"), "--version-json").CombinedOutput()
	if err == nil {
		t.Error("the exit code is 0")
	}
	contains(t, string(output), "--log-stall")
}

func TestTracingIsAcceptedAndAContainerRuns(t *testing.T) {
	t.Parallel()
	// Nobody listens at the endpoint: a missing collector is nobody's harm.
	s := newSandbox(t, func(options *monitor.Options) {
		options.EnableTracing = true
		options.TracingEndpoint = "http://127.0.0.1:1"
	})
	s.run("ls", bundle{args: []string{"ls"}})
	equal(t, "the exit file", s.waitExit("ls"), "0")
}

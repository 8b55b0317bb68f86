package process_test

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/toolbox/account"
	"github.com/daytona-go/daytona/toolbox/process"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == process.HelperCommand {
		in, err := io.ReadAll(os.Stdin)
		fmt.Printf("%q %d %s %q %v\n", os.Args, os.Getuid(), os.Getenv("GREETING"), in, err)
		os.Exit(3)
	}
	os.Exit(m.Run())
}

// TestHelper starts this test's program again, once where its file is no more.
func TestHelper(t *testing.T) {
	as := account.Current()
	if os.Getuid() == 0 {
		var err error
		if as, err = account.Lookup("65534:65534"); err != nil {
			t.Fatal(err)
		}
	}
	if os.Getenv("DAYTONA_TEST_GONE") != "" {
		if err := os.Remove(os.Args[0]); err != nil {
			t.Fatal(err)
		}
		// As the agent is.
		if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
			t.Fatal(err)
		}
	}
	s, err := process.NewSpawner(process.Options{Account: as, WorkDir: "/", Environ: func() []string { return []string{"GREETING=hello"} }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	in, input, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	output, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer output.Close()
	spec := s.Helper("echo", "-n", "a b")
	spec.Stdin, spec.Stdout = int(in.Fd()), int(out.Fd())
	p, err := s.Start(spec)
	in.Close()
	out.Close()
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(input, "input")
	input.Close()
	got, err := io.ReadAll(output)
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("%q %d hello %q <nil>\n", []string{"daytona-agent", "helper", "echo", "-n", "a b"}, as.UID, "input")
	if status := p.Wait(); string(got) != want || status.Code != 3 {
		t.Errorf("%q and %+v, want %q and 3", got, status, want)
	}
}

func TestHelperOfAProgramThatIsGone(t *testing.T) {
	// A copy where the user of the helper may not even look: only the file's
	// own mode counts.
	exe, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	file := t.TempDir() + "/program"
	if err := os.WriteFile(file, exe, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(file, "-test.run=^TestHelper$", "-test.v")
	cmd.Env = append(os.Environ(), "DAYTONA_TEST_GONE=1")
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: TestHelper") {
		t.Errorf("%v\n%s", err, out)
	}
}

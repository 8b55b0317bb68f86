package account_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/daytona-go/daytona/toolbox/account"
)

func TestLookup(t *testing.T) {
	a, err := account.Lookup("root")
	if os.Getuid() != 0 {
		if err == nil {
			t.Error("an ordinary user became root")
		}
	} else if err != nil || a.UID != 0 || a.Home == "" || a.Credential() != nil {
		t.Errorf("%+v, %v", a, err)
	}
	for _, bad := range []string{"", "no-such-user", "-1", "4294967295", "99999999999", "root:no-such-group", "0:-1", "0:4294967295"} {
		if a, err := account.Lookup(bad); err == nil {
			t.Errorf("%q: %+v", bad, a)
		}
	}
	self, err := account.Lookup(fmt.Sprintf("%d:%d", os.Getuid(), os.Getgid()))
	if err != nil || self.UID != os.Getuid() || self.GID != os.Getgid() {
		t.Errorf("%+v, %v", self, err)
	}
	if os.Getuid() == 0 {
		a, err := account.Lookup("12345:54321")
		if err != nil || a.UID != 12345 || a.GID != 54321 || !slices.Equal(a.Groups, []int{54321}) || a.Home != "/" {
			t.Errorf("%+v, %v", a, err)
		}
		if c := a.Credential(); c == nil || c.Uid != 12345 || c.Gid != 54321 || !slices.Equal(c.Groups, []uint32{54321}) {
			t.Errorf("%+v", c)
		}
	}
}

// TestDo takes on another user from many goroutines at once.
func TestDo(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can act as another user")
	}
	dir, err := os.MkdirTemp("", "account")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	shared := filepath.Join(dir, "shared") // root's own group must not help
	if err := os.WriteFile(shared, []byte("x"), 0o640); err != nil {
		t.Fatal(err)
	}
	a, err := account.Lookup("12345:54321")
	if err != nil {
		t.Fatal(err)
	}
	want := errors.New("what f returned")
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for j := range 50 {
				name := filepath.Join(dir, strconv.Itoa(i)+"-"+strconv.Itoa(j))
				err := a.Do(func() error {
					for _, p := range []string{secret, shared} {
						if _, err := os.ReadFile(p); !errors.Is(err, os.ErrPermission) {
							t.Errorf("%s: %v", p, err)
						}
					}
					if err := os.WriteFile(name, nil, 0o600); err != nil {
						t.Error(err)
					}
					return want
				})
				if err != want {
					t.Errorf("Do returned %v", err)
				}
				// As root again.
				if _, err := os.ReadFile(secret); err != nil {
					t.Error(err)
				}
				info, err := os.Stat(name)
				if err != nil {
					t.Error(err)
				} else if st := info.Sys().(*syscall.Stat_t); st.Uid != 12345 || st.Gid != 54321 {
					t.Errorf("made by %d:%d", st.Uid, st.Gid)
				}
			}
		})
	}
	wg.Wait()
	// A panic does not leave a thread behind as another user.
	func() {
		defer func() { _ = recover() }()
		_ = a.Do(func() error { panic("x") })
	}()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		b, err := os.ReadFile("/proc/self/task/" + task.Name() + "/status")
		if err != nil {
			continue
		}
		var uid [4]int
		for line := range strings.SplitSeq(string(b), "\n") {
			if _, err := fmt.Sscanf(line, "Uid:\t%d\t%d\t%d\t%d", &uid[0], &uid[1], &uid[2], &uid[3]); err == nil && uid != [4]int{} {
				t.Errorf("a thread has uids %v", uid)
			}
		}
	}
}

func BenchmarkDo(b *testing.B) {
	if os.Getuid() != 0 {
		b.Skip("only root can act as another user")
	}
	a, err := account.Lookup("12345:54321")
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		_ = a.Do(func() error { return nil })
	}
}

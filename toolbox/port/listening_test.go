package port

import (
	"net"
	"slices"
	"strings"
	"testing"
)

// TestSourcesAgree demands the same of both ways to find listening sockets.
func TestSourcesAgree(t *testing.T) {
	var mine []int
	for _, address := range []string{"127.0.0.1:0", "[::1]:0", ":0"} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Logf("%s: %v", address, err)
			continue
		}
		defer l.Close()
		mine = append(mine, l.Addr().(*net.TCPAddr).Port)
	}
	diag, err := fromSockDiag()
	if err != nil {
		t.Skipf("no sock_diag: %v", err)
	}
	proc, err := fromProc()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range mine {
		of := func(s socket) bool { return s.port == p }
		i, j := slices.IndexFunc(diag, of), slices.IndexFunc(proc, of)
		if i < 0 || j < 0 || diag[i] != proc[j] {
			t.Errorf("port %d is not the same in %v and in %v", p, diag, proc)
		}
	}
}

func BenchmarkListening(b *testing.B) {
	for name, f := range map[string]func() ([]socket, error){"sock_diag": fromSockDiag, "proc": fromProc} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := f(); err != nil {
					b.Skip(err)
				}
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add("  sl  local_address\n   0: 0100007F:0BB8 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 12345 1\n")
	f.Add("0: 00000000000000000000000001000000:1F90 x 0A x x x 0 0 7\n")
	f.Fuzz(func(t *testing.T, text string) {
		list, _ := parse(strings.NewReader(text), nil)
		for _, s := range list {
			if s.port < 0 || s.port > 65535 || s.uid < 0 {
				t.Errorf("%q: %+v", text, s)
			}
		}
	})
}

package toolbox

import (
	"fmt"
	"net/http"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/toolbox/computeruse"
	"github.com/daytona-go/daytona/toolbox/git"
	"github.com/daytona-go/daytona/toolbox/interpreter"
	"github.com/daytona-go/daytona/toolbox/lsp"
	"github.com/daytona-go/daytona/toolbox/process"
	"github.com/daytona-go/daytona/toolbox/ssh"
	"github.com/daytona-go/daytona/toolbox/terminal"
	"github.com/daytona-go/daytona/toolbox/webterminal"
)

// programs are the parts of the agent that run something.
type programs struct {
	reaper    *process.Reaper
	processes *process.Service
	terminals *terminal.Service
	git       *git.Service
	// interpreters run no process before there is code to run.
	interpreters *interpreter.Service
	languages    *lsp.Service
	desktop      *computeruse.Service
	ssh          *ssh.Service
	web          *webterminal.Service
}

func newPrograms(s *Server) (*programs, error) {
	reaper, err := process.NewReaper(process.ReaperOptions{Logger: s.logger})
	if err != nil {
		return nil, err
	}
	p := &programs{reaper: reaper}
	p.processes = process.New(process.Options{
		Account: s.account, WorkDir: s.workDir, Environ: s.env.Environ, CgroupDir: s.config.CgroupDir, Logger: s.logger, Reaper: reaper,
	})
	p.terminals = terminal.New(terminal.Options{Spawner: p.processes.Spawner(), Logger: s.logger})
	p.git = git.New(git.Options{Spawner: p.processes.Spawner(), Logger: s.logger})
	p.interpreters = interpreter.New(interpreter.Options{Spawner: p.processes.Spawner(), Logger: s.logger})
	p.languages = lsp.New(lsp.Options{Spawner: p.processes.Spawner(), Logger: s.logger})
	p.desktop = computeruse.New(computeruse.Options{Spawner: p.processes.Spawner(), Env: s.env, Logger: s.logger})
	p.web = webterminal.New(webterminal.Options{Spawner: p.processes.Spawner(), Logger: s.logger})
	p.ssh = ssh.New(ssh.Options{Spawner: p.processes.Spawner(), Active: func() func() { return s.activity.begin() }, Logger: s.logger})
	if len(s.config.Entrypoint) > 0 {
		// A sandbox whose entrypoint cannot be started is of use all the same,
		// and be it to find out why.
		if err := p.processes.StartEntrypoint(s.config.Entrypoint); err != nil {
			s.logger.Error(fmt.Sprintf("the entrypoint %q cannot be started", s.config.Entrypoint), "error", err)
		}
	}
	return p, nil
}

func (p *programs) Register(mux *http.ServeMux) {
	p.processes.Register(mux)
	p.terminals.Register(mux)
	p.interpreters.Register(mux)
	p.ssh.Register(mux)
	p.web.Register(mux)
}

// late are the parts with many routes below one path of their own. A route costs
// the start of every sandbox more than ten microseconds.
func (p *programs) late() map[string]func() *http.ServeMux {
	routes := func(part Registrar) func() *http.ServeMux {
		return sync.OnceValue(func() *http.ServeMux {
			mux := http.NewServeMux()
			part.Register(mux)
			return mux
		})
	}
	return map[string]func() *http.ServeMux{"git": routes(p.git), "lsp": routes(p.languages), "computeruse": routes(p.desktop)}
}

func (p *programs) close() error {
	p.git.Close()
	p.languages.Close()
	p.desktop.Close()
	p.ssh.Close()
	p.web.Close()
	p.terminals.Close()
	p.interpreters.Close()
	p.processes.Close()
	p.reaper.Close()
	return nil
}

// terminateGrace is between SIGTERM and SIGKILL for all processes of the
// sandbox.
const terminateGrace = 5 * time.Second

// terminate ends all processes of the sandbox, if the agent is its init.
func (p *programs) terminate() {
	p.desktop.Close() // it would start its programs again
	if os.Getpid() != 1 {
		return
	}
	_ = unix.Kill(-1, unix.SIGTERM)
	// There is no event for the end of the last process; the reaper buries
	// them meanwhile.
	for deadline := time.Now().Add(terminateGrace); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if unix.Kill(-1, 0) == unix.ESRCH {
			return
		}
	}
	_ = unix.Kill(-1, unix.SIGKILL)
}

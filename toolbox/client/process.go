package client

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// process implements daytona.Process.
type process struct{ t *toolbox }

func (p *process) Command(ctx context.Context, name string, args ...string) *daytona.Cmd {
	return daytona.NewCmd(ctx, p, name, args...)
}

func (p *process) Exec(ctx context.Context, command string, opts *daytona.ExecOptions) (daytona.ExecResult, error) {
	const op = "run command"
	var o daytona.ExecOptions
	if opts != nil {
		o = *opts
	}
	limit, err := seconds(op, o.Timeout)
	if err != nil {
		return daytona.ExecResult{}, err
	}
	var out wire.ExecuteResponse
	err = p.run(ctx, request{op: op, method: http.MethodPost, path: "/process/execute",
		in: wire.ExecuteRequest{Command: command, Cwd: o.Dir, Envs: o.Env, Timeout: limit}}, &out, &out)
	return daytona.ExecResult{ExitCode: out.ExitCode, Output: out.Result}, err
}

func (p *process) RunCode(ctx context.Context, code string, opts *daytona.CodeOptions) (daytona.CodeResult, error) {
	const op = "run code"
	var o daytona.CodeOptions
	if opts != nil {
		o = *opts
	}
	limit, err := seconds(op, o.Timeout)
	if err != nil {
		return daytona.CodeResult{}, err
	}
	if o.Language == "" {
		o.Language = p.t.language
	}
	var out wire.CodeRunResponse
	var partial wire.ExecuteResponse
	err = p.run(ctx, request{op: op, method: http.MethodPost, path: "/process/code-run",
		in: wire.CodeRunRequest{Code: code, Language: o.Language, Argv: o.Args, Envs: o.Env, Timeout: limit}}, &out, &partial)
	if err != nil {
		return daytona.CodeResult{ExitCode: partial.ExitCode, Output: partial.Result}, err
	}
	result := daytona.CodeResult{ExitCode: out.ExitCode, Output: out.Result}
	if out.Artifacts != nil {
		for _, raw := range out.Artifacts.Charts {
			c, err := decodeChart(op, raw)
			if err != nil {
				return result, err
			}
			result.Charts = append(result.Charts, c)
		}
	}
	return result, nil
}

// run sends a request to run something. Its answer goes to out or, when its
// time limit has ended it, what there is to partial.
func (p *process) run(ctx context.Context, r request, out any, partial *wire.ExecuteResponse) error {
	resp, err := p.t.do(ctx, r)
	if err != nil {
		return err
	}
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return decode(ctx, r, resp, out)
	}
	err, body := p.t.refused(ctx, r, resp)
	if errors.Is(err, daytona.ErrTimeout) {
		var t wire.TimeoutResponse
		t.ExitCode = -1
		if json.Unmarshal(body, &t) == nil {
			*partial = t.ExecuteResponse
		}
	}
	return err
}

func (p *process) CreatePTY(ctx context.Context, opts daytona.PTYOptions) (daytona.PTY, error) {
	return p.t.createPTY(ctx, opts)
}

func (p *process) ConnectPTY(ctx context.Context, id string) (daytona.PTY, error) {
	return p.t.connectPTY(ctx, id)
}

func (p *process) PTYs(ctx context.Context) ([]daytona.PTYInfo, error) {
	var list wire.PTYList
	if err := p.t.call(ctx, request{op: "list terminals", method: http.MethodGet, path: "/process/pty"}, &list); err != nil {
		return nil, err
	}
	infos := make([]daytona.PTYInfo, len(list.Sessions))
	for i, s := range list.Sessions {
		at, _ := time.Parse(time.RFC3339Nano, s.CreatedAt)
		infos[i] = daytona.PTYInfo{ID: s.ID, Dir: s.Cwd, Env: s.Envs,
			Size: daytona.TTYSize{Cols: s.Cols, Rows: s.Rows}, CreatedAt: at, Active: s.Active}
	}
	return infos, nil
}

func (p *process) Ports(ctx context.Context) ([]int, error) {
	var list wire.PortList
	err := p.t.call(ctx, request{op: "list ports", method: http.MethodGet, path: "/port"}, &list)
	return list.Ports, err
}

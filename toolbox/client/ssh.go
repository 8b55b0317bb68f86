package client

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/toolbox/wire"
)

func (t *toolbox) SSH() daytona.SSH { return secureShell{t} }

type secureShell struct{ t *toolbox }

func (s secureShell) Dial(ctx context.Context, opts *daytona.SSHOptions) (net.Conn, error) {
	var q url.Values
	if opts != nil && opts.AgentForwarding {
		q = url.Values{wire.SSHAgentForwarding: {"true"}}
	}
	ws, _, err := s.t.websocket(ctx, "connect by SSH", "", wire.SSHPath, q, commandReadLimit)
	if err != nil {
		return nil, err
	}
	return newStream(ws, "SSH", "ssh"), nil
}

func (s secureShell) HostKeys(ctx context.Context) ([]string, error) {
	const op = "get SSH host keys"
	var answer wire.SSHHostKeys
	if err := s.t.call(ctx, request{op: op, method: http.MethodGet, path: wire.SSHHostKeysPath}, &answer); err != nil {
		return nil, err
	}
	for _, k := range answer.Keys {
		// They end up in files that have lines.
		if f := strings.Split(k, " "); len(f) != 2 || f[0] == "" || f[1] == "" || strings.ContainsFunc(k, func(r rune) bool { return r < ' ' || r > '~' }) {
			return nil, malformed(op, "", fmt.Errorf("the key %.64q is not a type and base64", k))
		}
	}
	if len(answer.Keys) == 0 {
		return nil, malformed(op, "", fmt.Errorf("there is no key"))
	}
	return answer.Keys, nil
}

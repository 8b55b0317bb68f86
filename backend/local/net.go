package local

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/network"
)

// SetNetworkPolicy implements daytona.NetworkPolicer.
func (e *engine) SetNetworkPolicy(ctx context.Context, id string, p daytona.NetworkPolicy) (daytona.Info, error) {
	const op = "set network policy"
	if p.AllowDomains != nil {
		return daytona.Info{}, &daytona.Error{Kind: daytona.KindUnsupported, Op: op, Field: "AllowDomains", Value: p.AllowDomains,
			Message: "the local backend cannot filter by host name; use Allow"}
	}
	policy, err := policyOf(p)
	if err != nil {
		return daytona.Info{}, &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: "Allow", Value: p.Allow, Err: err}
	}
	return e.change(ctx, op, id, func(r *record) error {
		if r.State == daytona.StateStarted {
			if r.Offline && policy.Mode != network.None {
				return &daytona.Error{Kind: daytona.KindState, Op: op, Subject: r.Name, Field: "Block", Value: p.Block,
					Message: "a sandbox that was started without a network gets one only at its next start: stop it first"}
			}
			if !r.Offline {
				if err := e.applyPolicy(ctx, r, policy); err != nil {
					return err
				}
			}
		}
		r.Network = p
		return nil
	})
}

// post sends a request of the engine's own to an agent.
func (e *engine) post(ctx context.Context, id, path string, body any) error {
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://agent"+path, bytes.NewReader(data))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	t := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return e.dialSocket(ctx, id) }}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		msg, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		return fmt.Errorf("agent: %s: %s", resp.Status, bytes.TrimSpace(msg))
	}
	return nil
}

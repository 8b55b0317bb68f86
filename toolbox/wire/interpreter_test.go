package wire_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/daytona-go/daytona/toolbox/wire"
)

func TestDecodeInterpreterRequest(t *testing.T) {
	for _, c := range []struct {
		in    string
		limit time.Duration
		err   string
	}{
		{`{"code":"1"}`, 10 * time.Minute, ""}, {`{"code":"1","timeout":null}`, 10 * time.Minute, ""},
		{`{"code":"1","timeout":0}`, 0, ""}, {`{"code":"1","timeout":1.5}`, 1500 * time.Millisecond, ""},
		{`{"code":"1","timeout":1e-300}`, 1, ""}, {`{"code":"1","timeout":1e300}`, 0, ""},
		{`{"code":"1","timeout":-0.1}`, 0, "must not be negative"}, {`{"timeout":1}`, 0, "code is required"},
		{`{"code":"1","timeout":"1"}`, 0, "not a JSON object"},
	} {
		_, limit, err := wire.DecodeInterpreterRequest([]byte(c.in))
		if limit != c.limit || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v, %v", c.in, limit, err)
		}
	}
}

// FuzzInterpreterRequest checks that what is accepted can be carried out.
func FuzzInterpreterRequest(f *testing.F) {
	f.Add([]byte(`{"code":"1+1","contextId":"c","timeout":1.5,"envs":{"A":"b"},"language":"python"}`))
	f.Add([]byte(`{"code":"1","timeout":1e400}`))
	f.Add([]byte(`{`))
	f.Fuzz(func(t *testing.T, b []byte) {
		req, limit, err := wire.DecodeInterpreterRequest(b)
		if err != nil {
			if limit != 0 {
				t.Errorf("%q: %v with %v", b, err, limit)
			}
			return
		}
		if strings.TrimSpace(req.Code) == "" || limit < 0 || req.Timeout == nil && limit != wire.DefaultInterpreterTimeout || errors.Is(err, wire.ErrNotJSON) {
			t.Errorf("%q: %+v, %v", b, req, limit)
		}
	})
}

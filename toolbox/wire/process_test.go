package wire_test

import (
	"encoding/base64"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/daytona-go/daytona/toolbox/wire"
)

func TestSelectProtocol(t *testing.T) {
	const version, exit, envs = wire.ProtocolSDKVersion + "0.218.0", wire.ProtocolPTYExitControl, wire.ProtocolPTYEnvs + "e30"
	for _, c := range []struct {
		offered []string
		want    string
	}{
		{nil, ""},
		{[]string{"chat, superchat"}, ""},
		{[]string{envs}, envs},
		{[]string{envs + ", " + exit}, exit},
		{[]string{envs, exit, version}, version},
		{[]string{strings.ToLower(version)}, strings.ToLower(version)},
	} {
		h := http.Header{}
		for _, o := range c.offered {
			h.Add("Sec-WebSocket-Protocol", o)
		}
		if got := wire.SelectProtocol(wire.OfferedProtocols(h)); got != c.want {
			t.Errorf("%q: selected %q, want %q", c.offered, got, c.want)
		}
	}
	h := http.Header{"Sec-Websocket-Protocol": {version + "," + envs}}
	if v := wire.ClientVersion(h); v != "0.218.0" {
		t.Errorf("version %q", v)
	}
	h.Set(wire.HeaderSDKVersion, "0.1.0")
	if v := wire.ClientVersion(h); v != "0.1.0" {
		t.Errorf("version %q", v)
	}
}

func FuzzSubprotocols(f *testing.F) {
	f.Add(wire.ProtocolPTYEnvs+base64.RawURLEncoding.EncodeToString([]byte(`{"A":"b"}`))+", "+wire.ProtocolPTYExitControl, "A", "b")
	f.Add(wire.ProtocolPTYEnvs+"!!!", "", "")
	f.Add(wire.ProtocolSDKVersion+",,", "x", "é\x00")
	f.Fuzz(func(t *testing.T, header, name, value string) {
		h := http.Header{"Sec-Websocket-Protocol": {header}}
		offered := wire.OfferedProtocols(h)
		if p := wire.SelectProtocol(offered); p != "" && !slices.Contains(offered, p) {
			t.Fatalf("%q: selected %q, which is not offered", header, p)
		}
		wire.ClientVersion(h)
		wire.OffersExitControl(h)
		if envs, err := wire.OfferedPTYEnvs(h); err != nil && envs != nil {
			t.Fatalf("%q: %v and %v", header, envs, err)
		}
	})
}

func FuzzCommandSpec(f *testing.F) {
	f.Add("eyJhcmdzIjpbInRydWUiXX0", "true", "/tmp")
	f.Add("%%%", "", "")
	f.Fuzz(func(t *testing.T, spec, arg, cwd string) {
		_, _ = wire.DecodeCommandSpec(spec)
		arg, cwd = strings.ToValidUTF8(arg, "?"), strings.ToValidUTF8(cwd, "?")
		want := wire.CommandRequest{Args: []string{arg}, Cwd: cwd, Envs: map[string]string{"A": arg}, Timeout: 5}
		s, err := wire.EncodeCommandSpec(want)
		if err != nil {
			t.Fatal(err)
		}
		got, err := wire.DecodeCommandSpec(s)
		if err != nil || !slices.Equal(got.Args, want.Args) || got.Cwd != cwd || !maps.Equal(got.Envs, want.Envs) || got.Timeout != 5 {
			t.Fatalf("%+v, %v", got, err)
		}
	})
}

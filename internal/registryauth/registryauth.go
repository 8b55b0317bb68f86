// Package registryauth carries credentials for image registries from who was
// given them for one operation to who pulls. It is what [daytona.Backend] has no
// parameter for, as programs that embed the library have Docker's own.
package registryauth

import (
	"context"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
)

// Credential opens one registry.
type Credential struct {
	// Host is the registry's, with a port if it has one; "docker.io" for Docker's.
	Host, Username, Password string
}

type key struct{}

// With returns a context whose pulls use credentials, besides those that the
// machine has.
func With(ctx context.Context, c ...Credential) context.Context {
	if len(c) == 0 {
		return ctx
	}
	return context.WithValue(ctx, key{}, keychain(c))
}

// Keychain returns who resolves the credentials of a context, nil if it has
// none.
func Keychain(ctx context.Context) authn.Keychain {
	if k, ok := ctx.Value(key{}).(keychain); ok {
		return authn.NewMultiKeychain(k, authn.DefaultKeychain)
	}
	return nil
}

// Host is the host of a registry's URL or of its bare name.
func Host(url string) string {
	url = strings.TrimPrefix(strings.TrimPrefix(url, "https://"), "http://")
	host, _, _ := strings.Cut(url, "/")
	switch host = strings.ToLower(host); host {
	case "", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com":
		return "docker.io"
	}
	return host
}

type keychain []Credential

func (k keychain) Resolve(r authn.Resource) (authn.Authenticator, error) {
	for _, c := range k {
		if c.Host == Host(r.RegistryStr()) {
			return authn.FromConfig(authn.AuthConfig{Username: c.Username, Password: c.Password}), nil
		}
	}
	return authn.Anonymous, nil
}

package repository

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/storer"
	"github.com/go-git/go-git/v5/plumbing/transport"
	"github.com/go-git/go-git/v5/plumbing/transport/client"
	githttp "github.com/go-git/go-git/v5/plumbing/transport/http"
	"github.com/go-git/go-git/v5/plumbing/transport/server"
	gitssh "github.com/go-git/go-git/v5/plumbing/transport/ssh"
	"github.com/kevinburke/ssh_config"
	"github.com/skeema/knownhosts"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/daytona-go/daytona/toolbox/wire"
)

const (
	dialTimeout = 30 * time.Second
	// answerTimeout is how long a server may take to begin its answer.
	answerTimeout = 10 * time.Minute
)

// useTransports has go-git speak to remotes as this package wants it: in this
// process only, also to repositories of this machine, for which go-git would
// start git.
func useTransports(user User) {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.DialContext = (&net.Dialer{Timeout: dialTimeout}).DialContext
	t.TLSHandshakeTimeout = dialTimeout
	t.ResponseHeaderTimeout = answerTimeout
	web := githttp.NewClient(&http.Client{Transport: t})
	client.InstallProtocol("http", web)
	client.InstallProtocol("https", web)
	client.InstallProtocol("file", &localTransport{server.NewClient(local{user}), local{user}})
}

// localTransport is go-git's server in this process.
type localTransport struct {
	transport.Transport
	local local
}

func (t *localTransport) NewUploadPackSession(ep *transport.Endpoint, auth transport.AuthMethod) (transport.UploadPackSession, error) {
	s, err := t.Transport.NewUploadPackSession(ep, auth)
	if err != nil {
		return nil, err
	}
	from, err := t.local.Load(ep)
	if err != nil {
		return nil, err
	}
	return &localSession{s, from}, nil
}

// localSession leaves out what the client has and the server has not: the server
// would fail.
type localSession struct {
	transport.UploadPackSession
	from storer.Storer
}

func (s *localSession) UploadPack(ctx context.Context, q *packp.UploadPackRequest) (*packp.UploadPackResponse, error) {
	q.Haves = slices.DeleteFunc(q.Haves, func(h plumbing.Hash) bool { return s.from.HasEncodedObject(h) != nil })
	return s.UploadPackSession.UploadPack(ctx, q)
}

// local finds repositories of this machine.
type local struct{ user User }

func (l local) Load(ep *transport.Endpoint) (storer.Storer, error) {
	r, err := openLocal(ep.Path, l.user)
	if err != nil {
		var e *Error
		if errors.As(err, &e) && e.Code == wire.CodeGitRepoNotFound {
			return nil, transport.ErrRepositoryNotFound
		}
		return nil, err
	}
	return r.store, nil
}

// auth chooses how to prove to a remote who one is: by what the request says,
// by its URL, or by what is stored.
func (s *session) auth(a *address) (transport.AuthMethod, error) {
	user, password := s.username, s.password
	given := user != "" || password != ""
	if !given {
		user, password = a.user, a.password
	}
	switch a.scheme {
	case "http", "https":
		if user == "" && password == "" {
			user, password = s.stored(a)
			s.secret(password)
		}
		if user == "" && password == "" {
			return nil, nil
		}
		if user == "" {
			user = "git" // any will do for a token
		}
		if strings.ContainsAny(user, ":\r\n\x00") || strings.ContainsAny(password, "\r\n\x00") {
			return nil, invalid("the user name has a colon, or one of the credentials a line's end")
		}
		return &githttp.BasicAuth{Username: user, Password: password}, nil
	case "ssh":
		if a.user != "" {
			user = a.user
		}
		if user == "" {
			if user = ssh_config.Get(hostOnly(a.host), "User"); user == "" {
				user = gitssh.DefaultUsername
			}
		}
		return &sshAuth{user: user, password: password, host: hostOnly(a.host), home: s.user.Home}, nil
	}
	return nil, nil
}

func hostOnly(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		return h
	}
	return strings.Trim(host, "[]")
}

// sshAuth logs in by the password of the request, the agent that the sandbox
// has, or the user's keys.
type sshAuth struct{ user, password, host, home string }

func (a *sshAuth) Name() string   { return "ssh" }
func (a *sshAuth) String() string { return "ssh: " + a.user }

func (a *sshAuth) ClientConfig() (*ssh.ClientConfig, error) {
	config := &ssh.ClientConfig{User: a.user, Timeout: dialTimeout}
	config.Auth = append(config.Auth, ssh.PublicKeysCallback(a.signers))
	if a.password != "" {
		config.Auth = append(config.Auth, ssh.Password(a.password))
	}
	return config, a.hostKey(config)
}

// signers are the keys of the user's agent and files; one with a passphrase
// cannot be used.
func (a *sshAuth) signers() ([]ssh.Signer, error) {
	var all []ssh.Signer
	if socket := os.Getenv("SSH_AUTH_SOCK"); socket != "" {
		if conn, err := net.DialTimeout("unix", socket, dialTimeout); err == nil {
			if s, err := agent.NewClient(conn).Signers(); err == nil {
				all = append(all, s...)
			}
		}
	}
	files := ssh_config.GetAll(a.host, "IdentityFile")
	for _, name := range []string{"id_ed25519", "id_ecdsa", "id_rsa"} {
		files = append(files, a.home+"/.ssh/"+name)
	}
	for _, file := range files {
		if rest, ok := strings.CutPrefix(file, "~/"); ok {
			file = a.home + "/" + rest
		}
		pem, err := readRegular(file, 1<<20)
		if err != nil {
			continue
		}
		if signer, err := ssh.ParsePrivateKey(pem); err == nil {
			all = append(all, signer)
		}
	}
	return all, nil
}

// hostKey has the host's key checked as ssh does without a terminal: one that is
// not known is refused, unless the user's configuration says otherwise.
func (a *sshAuth) hostKey(config *ssh.ClientConfig) error {
	var files []string
	for _, f := range []string{a.home + "/.ssh/known_hosts", a.home + "/.ssh/known_hosts2", "/etc/ssh/ssh_known_hosts"} {
		if regular(f) {
			files = append(files, f)
		}
	}
	db, err := knownhosts.NewDB(files...)
	if err != nil {
		return failf(500, "", "read the known hosts: %v", err)
	}
	check := db.HostKeyCallback()
	strict := strings.ToLower(ssh_config.Get(a.host, "StrictHostKeyChecking"))
	config.HostKeyCallback = func(host string, remote net.Addr, key ssh.PublicKey) error {
		err := check(host, remote, key)
		if err == nil || strict == "no" || strict == "off" {
			return nil
		}
		if knownhosts.IsHostUnknown(err) {
			if strict == "accept-new" {
				return nil
			}
			return failf(403, wire.CodeGitAuth, "the key of the SSH server %s is not known: add it to ~/.ssh/known_hosts (ssh-keyscan prints it)", host)
		}
		return failf(403, wire.CodeGitAuth, "the key of the SSH server %s is not the one in ~/.ssh/known_hosts: somebody may be in between", host)
	}
	// The algorithms of the keys that are known, or a server with several would
	// show one that is not.
	port := ssh_config.Get(a.host, "Port")
	if port == "" {
		port = "22"
	}
	config.HostKeyAlgorithms = db.HostKeyAlgorithms(net.JoinHostPort(a.host, port))
	return nil
}

// credential is a line of a credentials file of git-credential-store(1).
type credential struct{ protocol, host, user, password string }

// parseCredentials reads such a file; lines that are none are left out.
func parseCredentials(text string) []credential {
	var all []credential
	for line := range strings.SplitSeq(text, "\n") {
		line = strings.TrimRight(line, "\r")
		protocol, rest, ok := strings.Cut(line, "://")
		if !ok {
			continue
		}
		authority, _, _ := strings.Cut(rest, "/")
		at := strings.LastIndexByte(authority, '@')
		if at < 0 {
			continue
		}
		user, password, _ := strings.Cut(authority[:at], ":")
		c := credential{protocol: protocol}
		var errs [3]error
		c.user, errs[0] = url.PathUnescape(user)
		c.password, errs[1] = url.PathUnescape(password)
		c.host, errs[2] = url.PathUnescape(authority[at+1:])
		if errors.Join(errs[:]...) != nil || c.host == "" {
			continue
		}
		all = append(all, c)
	}
	return all
}

func (c credential) line() string {
	return c.protocol + "://" + escape(c.user) + ":" + escape(c.password) + "@" + c.host
}

// escape escapes all but what is unreserved, as git does.
func escape(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; letter(c) || c >= '0' && c <= '9' || strings.IndexByte("-._~", c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02x", c)
		}
	}
	return b.String()
}

// maxCredentials bounds a credentials file, in bytes.
const maxCredentials = 4 << 20

// stored finds credentials in the files of git-credential-store(1), if the
// configuration has that as a helper. No other helper is started.
func (s *session) stored(a *address) (user, password string) {
	helpers := s.config.all("credential", "", "helper")
	for _, sub := range s.config.subs("credential") {
		// With a path it is for some repositories only: the host will do here.
		if u, err := url.Parse(sub); err == nil && (u.Scheme == a.scheme || u.Scheme == "") && (u.Host == a.host || u.Scheme == "" && sub == a.host) {
			helpers = append(helpers, s.config.all("credential", sub, "helper")...)
		}
	}
	var files []string
	for _, h := range helpers {
		f := strings.Fields(h)
		switch {
		case h == "":
			files = nil // an empty one forgets those before
		case f[0] != "store":
		case len(f) == 1:
			files = append(files, s.user.Home+"/.git-credentials", xdg(s.user.Home)+"/git/credentials")
		default:
			file := strings.TrimPrefix(strings.TrimPrefix(f[len(f)-1], "--file="), "--file")
			if rest, ok := strings.CutPrefix(file, "~/"); ok {
				file = s.user.Home + "/" + rest
			}
			files = append(files, file)
		}
	}
	for _, file := range files {
		text, err := readRegular(file, maxCredentials)
		if err != nil {
			continue
		}
		for _, c := range parseCredentials(string(text)) {
			if c.protocol == a.scheme && strings.EqualFold(c.host, a.host) && (a.user == "" || a.user == c.user) {
				return c.user, c.password
			}
		}
	}
	return "", ""
}

// Authenticate stores credentials where git finds them, too.
func Authenticate(q *wire.GitAuthenticateRequest, user User) error {
	c := credential{protocol: q.Protocol, host: q.Host, user: q.Username, password: q.Password}
	if c.protocol == "" {
		c.protocol = "https"
	}
	if c.host == "" {
		c.host = "github.com"
	}
	if c.protocol != "https" && c.protocol != "http" {
		return invalid("protocol is %q; credentials are stored for https and http", clip(c.protocol))
	}
	if u, err := url.Parse(c.protocol + "://" + c.host); err != nil || u.Host != c.host || u.Hostname() == "" {
		return invalid("host %q: not a host with an optional port", clip(c.host))
	}
	if c.user == "" || c.password == "" {
		return invalid("username and password must not be empty")
	}
	if strings.ContainsAny(c.user+c.password, "\r\n\x00") || strings.Contains(c.user, ":") {
		return invalid("the credentials have a line's end, or the user name a colon")
	}
	file := user.Home + "/.git-credentials"
	err := locked(file, 0o600, func(w io.Writer) error {
		old, err := readRegular(file, maxCredentials)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		lines := []string{c.line()}
		for line := range strings.SplitSeq(string(old), "\n") {
			if p := parseCredentials(line); len(p) == 1 && p[0].protocol == c.protocol && strings.EqualFold(p[0].host, c.host) && p[0].user == c.user {
				continue
			}
			if line != "" {
				lines = append(lines, line)
			}
		}
		_, err = io.WriteString(w, strings.Join(lines, "\n")+"\n")
		return err
	})
	if err == nil {
		err = os.Chmod(file, 0o600)
	}
	if err != nil {
		return fileError(err)
	}
	l := &loader{home: user.Home}
	all, err := userConfig(l)
	if err != nil {
		return failf(500, "", "read the configuration: %v", err)
	}
	for _, h := range all.all("credential", "", "helper") {
		if h == "store" {
			return nil
		}
	}
	// For this host alone: whatever helper there is for others stays.
	return SetConfig("global", "", user, [2]string{"credential." + c.protocol + "://" + c.host + ".helper", "store"})
}

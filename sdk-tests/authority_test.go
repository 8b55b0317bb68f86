package sdktests

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// authority is the CA that vouches for the servers of these tests: with TLS
// nothing of the SDKs is different from what it is with a server elsewhere.
var authority struct {
	// file has it and the CAs of this machine.
	file string
	// certificate is that of all servers.
	certificate tls.Certificate
}

// systemCAs is where programs find the CAs of this machine. For programs of these
// tests it is the authority's file, as if an administrator had installed it: what
// the Python SDK uploads with is kept from all variables, and so from those that
// name another file.
const systemCAs = "/etc/ssl/certs/ca-certificates.crt"

// TestMain makes the authority before anything asks what CAs there are: what
// this process starts, such as the programs that mount volumes, believes it too.
func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "sdk-tests-")
	if err == nil {
		err = makeAuthority(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

func makeAuthority(dir string) error {
	if err := os.Chmod(dir, 0o755); err != nil { // for programs without rights
		return err
	}
	now := time.Now()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "sdk-tests"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	root, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return err
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "localhost"}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		DNSNames: []string{"localhost", "proxy.localhost", "*.proxy.localhost"}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	own, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
	if err != nil {
		return err
	}
	authority.certificate = tls.Certificate{Certificate: [][]byte{own}, PrivateKey: key}
	bundle := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root})
	if others, err := os.ReadFile(systemCAs); err == nil {
		bundle = bytes.Join([][]byte{bundle, others}, []byte("\n"))
	}
	authority.file = filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(authority.file, bundle, 0o644); err != nil {
		return err
	}
	return os.Setenv("SSL_CERT_FILE", authority.file)
}

package server

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"html/template"
	"net/http"
	"slices"
	"strings"
	"sync"

	_ "embed"

	"github.com/danielgtaylor/huma/v2"

	"github.com/daytona-go/daytona/server/observe"
)

// pageText is the page of the API for people: HTML and CSS, no script, and
// nothing that is not in it.
//
//go:embed page.html
var pageText string

//go:embed page.css
var pageStyle string

// pageGroup is the operations of a tag.
type pageGroup struct {
	Tag        string
	Operations []pageOperation
}

type pageOperation struct {
	Method, Path string
	*huma.Operation
	Body      *huma.Schema
	Responses []pageResponse
}

type pageResponse struct {
	Status string
	*huma.Response
	Schema *huma.Schema
}

type pageSchema struct {
	Name string
	*huma.Schema
	Fields []pageField
}

type pageField struct {
	Name     string
	Required bool
	*huma.Schema
}

// apiPage serves the OpenAPI document as a page.
func apiPage(doc *huma.OpenAPI) http.Handler {
	// Once, and when somebody asks: it takes some time, and the document does not
	// change.
	render := sync.OnceValues(func() ([]byte, error) { return renderPage(doc) })
	sum := sha256.Sum256([]byte(pageStyle))
	policy := "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		observe.From(r.Context()).Operation = "page"
		b, err := render()
		if err != nil {
			observe.From(r.Context()).Err = err
			http.Error(w, "the page can't be written", http.StatusInternalServerError)
			return
		}
		h := w.Header()
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		w.Write(b)
	})
}

func renderPage(doc *huma.OpenAPI) ([]byte, error) {
	groups := map[string]*pageGroup{}
	for path, item := range doc.Paths {
		for method, op := range map[string]*huma.Operation{
			"GET": item.Get, "PUT": item.Put, "POST": item.Post, "DELETE": item.Delete, "OPTIONS": item.Options, "HEAD": item.Head, "PATCH": item.Patch,
		} {
			if op == nil {
				continue
			}
			tag := "other"
			if len(op.Tags) > 0 {
				tag = op.Tags[0]
			}
			if groups[tag] == nil {
				groups[tag] = &pageGroup{Tag: tag}
			}
			o := pageOperation{Method: method, Path: path, Operation: op}
			if op.RequestBody != nil {
				o.Body = jsonSchema(op.RequestBody.Content)
			}
			for status, r := range op.Responses {
				o.Responses = append(o.Responses, pageResponse{status, r, jsonSchema(r.Content)})
			}
			slices.SortFunc(o.Responses, func(a, b pageResponse) int { return cmp.Compare(a.Status, b.Status) })
			groups[tag].Operations = append(groups[tag].Operations, o)
		}
	}
	var sorted []*pageGroup
	for _, g := range groups {
		slices.SortFunc(g.Operations, func(a, b pageOperation) int {
			return cmp.Or(cmp.Compare(a.Path, b.Path), cmp.Compare(a.Method, b.Method))
		})
		sorted = append(sorted, g)
	}
	slices.SortFunc(sorted, func(a, b *pageGroup) int { return cmp.Compare(a.Tag, b.Tag) })
	var schemas []pageSchema
	for name, s := range doc.Components.Schemas.Map() {
		v := pageSchema{Name: name, Schema: s}
		for field, f := range s.Properties {
			v.Fields = append(v.Fields, pageField{field, slices.Contains(s.Required, field), f})
		}
		slices.SortFunc(v.Fields, func(a, b pageField) int { return cmp.Compare(a.Name, b.Name) })
		schemas = append(schemas, v)
	}
	slices.SortFunc(schemas, func(a, b pageSchema) int { return cmp.Compare(a.Name, b.Name) })
	t, err := template.New("page").Funcs(template.FuncMap{
		"ref": func(s *huma.Schema) string { return strings.TrimPrefix(s.Ref, "#/components/schemas/") },
		"enum": func(s *huma.Schema) string {
			words := make([]string, len(s.Enum))
			for i, v := range s.Enum {
				b, err := json.Marshal(v)
				if err != nil {
					return ""
				}
				words[i] = string(b)
			}
			return strings.Join(words, ", ")
		},
		"style": func() template.CSS { return template.CSS(pageStyle) },
	}).Parse(pageText)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = t.Execute(&b, map[string]any{"Info": doc.Info, "Groups": sorted, "Schemas": schemas})
	return b.Bytes(), err
}

// jsonSchema is the schema of a body that is JSON, nil if it is not.
func jsonSchema(content map[string]*huma.MediaType) *huma.Schema {
	if m := content["application/json"]; m != nil {
		return m.Schema
	}
	return nil
}

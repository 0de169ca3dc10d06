// Renders chats with a Modelfile's TEMPLATE as Ollama's documentation describes it: ollama_render < REQUEST > REPLY
//
// REQUEST, JSON: templates (by name), chats ({template, messages, think (true, false or null), level}).
// REPLY, JSON: texts in the order of the chats, and tags: what Ollama takes for the marks around the reasoning.
package main

import (
	"encoding/json"
	"io"
	"log"
	"os"
	"strings"
	"text/template"
	"text/template/parse"
	"time"
)

type call struct {
	ID       string
	Function struct {
		Index     int
		Name      string
		Arguments map[string]any
	}
}

type message struct {
	Role, Content, Thinking, ToolName, ToolCallID string
	ToolCalls                                     []call
}

type chat struct {
	Template string
	Messages []message
	Think    *bool
	Level    string
}

// Messages of one role that follow each other become one, except for tools' results. The texts of all system messages
// are also given together.
func collate(messages []message) (string, []*message) {
	var system []string
	var out []*message
	for i := range messages {
		next := messages[i]
		if next.Role == "system" {
			system = append(system, next.Content)
		}
		if n := len(out); n > 0 && next.Role != "tool" && out[n-1].Role == next.Role {
			out[n-1].Content += "\n\n" + next.Content
			continue
		}
		out = append(out, &next)
	}
	return strings.Join(system, "\n\n"), out
}

func compile(text string) *template.Template {
	functions := template.FuncMap{
		"json": func(value any) string {
			data, err := json.Marshal(value)
			if err != nil {
				log.Fatal(err)
			}
			return string(data)
		},
		"currentDate": func(...string) string { return time.Now().Format("2006-01-02") },
	}
	return template.Must(template.New("").Option("missingkey=zero").Funcs(functions).Parse(text))
}

func render(compiled *template.Template, c chat) string {
	system, messages := collate(c.Messages)
	values := map[string]any{
		"System": system, "Messages": messages, "Tools": []any(nil), "Response": "",
		"Think": c.Think != nil && *c.Think, "IsThinkSet": c.Think != nil, "ThinkLevel": c.Level,
	}
	var out strings.Builder
	if err := compiled.Execute(&out, values); err != nil {
		log.Fatal(err)
	}
	return out.String()
}

func names(node *parse.PipeNode, field string) bool {
	for _, command := range node.Cmds {
		for _, argument := range command.Args {
			if f, ok := argument.(*parse.FieldNode); ok && f.Ident[0] == field {
				return true
			}
		}
	}
	return false
}

// The texts at the ends of the list that prints .Thinking, within a range over .Messages.
func tags(list *parse.ListNode, inMessages bool) []string {
	if list == nil {
		return nil
	}
	for _, node := range list.Nodes {
		var found []string
		switch n := node.(type) {
		case *parse.ActionNode:
			first, isFirst := list.Nodes[0].(*parse.TextNode)
			last, isLast := list.Nodes[len(list.Nodes)-1].(*parse.TextNode)
			if inMessages && names(n.Pipe, "Thinking") && isFirst && isLast {
				found = []string{strings.TrimSpace(string(first.Text)), strings.TrimSpace(string(last.Text))}
			}
		case *parse.IfNode:
			if found = tags(n.List, inMessages); found == nil {
				found = tags(n.ElseList, inMessages)
			}
		case *parse.RangeNode:
			found = tags(n.List, inMessages || names(n.Pipe, "Messages"))
		}
		if found != nil {
			return found
		}
	}
	return nil
}

func main() {
	data, err := io.ReadAll(os.Stdin)
	if err != nil {
		log.Fatal(err)
	}
	var request struct {
		Templates map[string]string
		Chats     []chat
	}
	if err := json.Unmarshal(data, &request); err != nil {
		log.Fatal(err)
	}
	compiled := map[string]*template.Template{}
	reply := struct {
		Texts []string            `json:"texts"`
		Tags  map[string][]string `json:"tags"`
	}{[]string{}, map[string][]string{}}
	for name, text := range request.Templates {
		compiled[name] = compile(text)
		reply.Tags[name] = tags(compiled[name].Tree.Root, false)
	}
	for _, c := range request.Chats {
		reply.Texts = append(reply.Texts, render(compiled[c.Template], c))
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(reply); err != nil {
		log.Fatal(err)
	}
}

{{- define "aksnet.labels" -}}
app.kubernetes.io/name: aksnet
{{- end }}

{{- define "aksnet.monitorLabels" -}}
{{ include "aksnet.labels" . }}
{{- with .Values.scrape.labels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* The series have no node of their own: the pod's is theirs. */}}
{{- define "aksnet.endpoint" -}}
- port: metrics
  path: /metrics
  interval: {{ .Values.scrape.interval }}
  relabelings:
    - sourceLabels: [__meta_kubernetes_pod_node_name]
      targetLabel: node
{{- end }}

{{- define "aksnet.setting" -}}
{{- if kindIs "slice" . }}{{ join "," . }}
{{- else if kindIs "float64" . }}{{ printf "%.0f" . }}
{{- else }}{{ . }}
{{- end }}
{{- end }}

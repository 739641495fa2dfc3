#!/usr/bin/env ruby
# frozen_string_literal: true

# Prints an SBOM (CycloneDX 1.5, JSON) of the programs in a directory: each program with
# its digest, each crate compiled for them with its licence and the digest of its
# package, and the C library that they contain.
#
#   scripts/lib/sbom.rb TARGET DIR CARGO-OPTION...
require 'digest'
require 'json'
require 'open3'
require 'time'

TARGET, DIRECTORY, *SELECTION = ARGV

def run(*command)
  output, status = Open3.capture2(*command)
  abort "sbom: #{command.join(' ')} failed" unless status.success?
  output
end

# "name version" of the crates that the selection compiles for the target.
def compiled
  tree = run('cargo', 'tree', '--locked', '--quiet', '--edges', 'normal,build', '--target', TARGET,
             '--prefix', 'none', '--format', '{p}', *SELECTION)
  tree.lines.map { |line| line.split[0, 2].join(' ').sub(' v', ' ') }.uniq
end

# "name version" to SHA-256 of the package, from Cargo.lock.
def checksums
  File.read('Cargo.lock').split('[[package]]').to_h do |text|
    value = ->(key) { text[/^#{key} = "(.*)"$/, 1] }
    ["#{value['name']} #{value['version']}", value['checksum']]
  end
end

def key(package) = "#{package['name']} #{package['version']}"

# Crates of the workspace are not published.
def reference(package) = "#{package['source'] ? 'pkg:cargo/' : 'crate:'}#{package['name']}@#{package['version']}"
def sha256(content) = [{ alg: 'SHA-256', content: content }]

# crates.io still has licences of the old form `MIT/Apache-2.0`.
def licences(package)
  return {} unless package['license']

  { licenses: [{ expression: package['license'].gsub(%r{\s*/\s*}, ' OR ') }] }
end

def crate(package, checksum)
  published = checksum ? { purl: reference(package), hashes: sha256(checksum) } : {}
  { type: 'library', 'bom-ref': reference(package), name: package['name'], version: package['version'],
    **licences(package), **published }
end

# Program to package, of those in the directory.
def programs(packages)
  names = packages.flat_map do |package|
    package['targets'].select { |target| target['kind'] == ['bin'] }.map { |target| [target['name'], package] }
  end
  names.select { |name, _| File.file?("#{DIRECTORY}/#{name}") }.sort_by(&:first).to_h
end

def program(name, package)
  { type: 'application', 'bom-ref': "program:#{name}", name: name, version: package['version'],
    **licences(package), hashes: sha256(Digest::SHA256.file("#{DIRECTORY}/#{name}").hexdigest) }
end

def c_library
  version = run('getconf', 'GNU_LIBC_VERSION').split.last
  { type: 'library', 'bom-ref': 'glibc', name: 'glibc', version: version,
    licenses: [{ expression: 'LGPL-2.1-or-later' }],
    purl: "pkg:generic/glibc@#{version}" }
end

metadata = JSON.parse(run('cargo', 'metadata', '--locked', '--format-version', '1', '--filter-platform', TARGET))
chosen = compiled
sums = checksums
packages = metadata['packages'].select { |package| chosen.include?(key(package)) }.sort_by { |package| key(package) }
references = packages.to_h { |package| [package['id'], reference(package)] }
edges = metadata['resolve']['nodes'].select { |node| references.key?(node['id']) }.map do |node|
  { ref: references[node['id']], dependsOn: node['dependencies'].filter_map { |id| references[id] }.uniq.sort }
end
shipped = programs(packages)
abort "sbom: no program of these packages is in #{DIRECTORY}" if shipped.empty?
edges += shipped.map { |name, package| { ref: "program:#{name}", dependsOn: [reference(package), 'glibc'] } }
edges << { ref: 'portcullis', dependsOn: shipped.keys.map { |name| "program:#{name}" } }
commit_time = Time.at(run('git', 'log', '-1', '--format=%ct').to_i).utc.iso8601

puts JSON.pretty_generate(
  bomFormat: 'CycloneDX', specVersion: '1.5', version: 1,
  metadata: { timestamp: commit_time,
              component: { type: 'application', 'bom-ref': 'portcullis', name: 'portcullis',
                           version: shipped.values.first['version'],
                           licenses: [{ expression: 'Apache-2.0' }] } },
  components: shipped.map { |name, package| program(name, package) } +
              packages.map { |package| crate(package, sums[key(package)]) } + [c_library],
  dependencies: edges.sort_by { |edge| edge[:ref] }
)
